"""Refusals as OpenAI's clients know them: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.types import Scope

from service.api.middleware.paths import route_path

__all__ = ["error_object", "speaks_openai", "suits_openai"]

IMAGE_PATHS: Final = frozenset({"/v1/images/generations", "/v1/images/edits"})
MODELS: Final = "/v1/models"

TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}  # else by the hundreds of the status
CODES: Final = {"unauthorized": "invalid_api_key", "quota-exceeded": "rate_limit_exceeded"}  # else the slug


def speaks_openai(scope: Scope) -> bool:
    """Whether a request came to a route whose errors are OpenAI's and nothing else."""
    return route_path(scope) in IMAGE_PATHS


def suits_openai(scope: Scope) -> bool:
    """Whether it came to a route that serves OpenAI's clients too: its problem documents carry an `error`."""
    path = route_path(scope)
    return path == MODELS or path.startswith(MODELS + "/")


def error_object(problem: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's error object from a problem document (see `service.api.problems.document`)."""
    status, slug = problem["status"], problem["type"].rpartition("/")[2]
    errors = problem.get("errors", [])
    code = CODES.get(slug, slug.replace("-", "_"))
    if slug == "not-found" and problem.get("instance", "").startswith(MODELS + "/"):
        code = "model_not_found"
    named = [(_param(error["loc"]), error["message"]) for error in errors]
    return {
        "message": " ".join(f"{param}: {message}" if param else message for param, message in named)
        or problem["detail"],
        "type": TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": next((param for param, _ in named), None),
        "code": errors[0]["code"] if errors else code,
    }


def _param(loc: list[str | int]) -> str | None:
    """`["body", "class_labels", 0]` as `class_labels[0]`; None for the body itself."""
    text = ""
    for part in loc[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or None

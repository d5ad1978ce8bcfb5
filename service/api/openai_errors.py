"""Refusals as OpenAI's clients know them: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Scope

from service.api.middleware.paths import route_path

__all__ = ["error_object", "speaks_openai", "suits_openai"]

IMAGE_PATHS: Final = frozenset({"/v1/images/generations", "/v1/images/edits"})
MODELS: Final = "/v1/models"
VERSION: Final = "/v1/"

TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}  # else by the hundreds of the status
CODES: Final = {"unauthorized": "invalid_api_key", "quota-exceeded": "rate_limit_exceeded"}  # else the slug


def speaks_openai(scope: Scope) -> bool:
    """Whether a request came to a route whose errors are OpenAI's and nothing else."""
    return route_path(scope) in IMAGE_PATHS


def suits_openai(scope: Scope, status: int) -> bool:
    """Whether it may come from OpenAI's clients too, so that its problem document carries an `error`.

    That is so under `/v1/models`, and where there is no route: those clients call more than we serve. Without a key
    nobody has looked whether there is one.
    """
    path = route_path(scope)
    unknown = (
        status in (HTTPStatus.NOT_FOUND, HTTPStatus.UNAUTHORIZED) and "route" not in scope and path.startswith(VERSION)
    )
    return unknown or path == MODELS or path.startswith(MODELS + "/")


def error_object(problem: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """OpenAI's error object from a problem document (see `service.api.problems.document`) and the route's path."""
    status, slug = problem["status"], problem["type"].rpartition("/")[2]
    errors = problem.get("errors", [])
    code = CODES.get(slug, slug.replace("-", "_"))
    if slug == "not-found" and path.startswith(MODELS + "/"):
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

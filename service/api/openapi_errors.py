"""The refusals of each operation in the OpenAPI document: by status, with an example for each problem."""

from __future__ import annotations

from typing import Any, Final

from service.api.openai_errors import IMAGE_PATHS, error_object
from service.api.problems import MEDIA_TYPE, PROBLEMS, TYPE_PREFIX

__all__ = ["OPENAI_ERROR", "add_refusals", "example_of"]

REQUEST_ID: Final = "req_01J9ZKQ0T4S8V6W2X1Y3A5B7C9"

DETAILS: Final = {
    "bad-request": "The body is not JSON: it breaks at line 1, column 2.",
    "unauthorized": "Send a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
    "not-found": "No model of this name is served here.",
    "not-acceptable": "Nothing that the Accept header allows fits this request. There is: application/json.",
    "body-timeout": "The body was not received within 30 s.",
    "body-too-large": "A body has at most 10485760 bytes here.",
    "unsupported-media-type": "Send the body as Content-Type: application/json, in UTF-8.",
    "invalid-request": "Should be at most 64.",
    "quota-exceeded": "more than 1000 image-steps of this client are outstanding",
    "internal-error": "A fault of ours; the log has it under this request id.",
    "inference-failed": "the network's result is not finite",
    "overloaded": "the backlog is over max_queue_time",
    "not-ready": "the model is loading",
    "draining": "the service is stopping",
    "engine-lost": "the engine was lost each time it ran this request",
    "deadline-exceeded": "the deadline passed",
}
WITH_RETRY_AFTER: Final = {429, 503}

EVERYWHERE: Final = ("unauthorized", "internal-error")
OF_QUERIES: Final = ("invalid-request",)
OF_BODIES: Final = ("bad-request", "body-timeout", "body-too-large", "unsupported-media-type", "invalid-request")
OF_WORK: Final = (
    *("quota-exceeded", "inference-failed", "overloaded", "not-ready", "draining", "engine-lost"),
    "deadline-exceeded",
)
PROBES: Final = {
    "/livez": (),
    "/readyz": ("not-ready", "draining"),
    "/healthz": ("not-ready", "draining"),
    "/metrics": EVERYWHERE,
}

OPENAI_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "description": "OpenAI's error object.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                "code": {"type": "string"},
            },
        }
    },
}


def slugs_of(path: str, method: str) -> tuple[str, ...]:
    """The problems that an operation can answer with."""
    if path in PROBES:
        return PROBES[path]
    if method == "post":
        chosen = () if path in IMAGE_PATHS else ("not-acceptable",)
        return (*EVERYWHERE, *OF_BODIES, *chosen, *OF_WORK)
    named = ("not-found",) if "{" in path else ()
    work = OF_WORK if path.startswith("/v1/images/") else ()
    return (*EVERYWHERE, *OF_QUERIES, *named, *work)


def example_of(slug: str, path: str) -> dict[str, Any]:
    """A problem document as `path` would give it."""
    status, title = PROBLEMS[slug]
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + slug,
        "title": title,
        "status": status,
        "detail": DETAILS[slug],
        "instance": path,
        "request_id": REQUEST_ID,
    }
    if slug == "invalid-request":
        *loc, code, message = _wrong_field(path)
        document |= {"detail": message, "errors": [{"loc": loc, "code": code, "message": message}]}
    return document


def _wrong_field(path: str) -> tuple[str, str, str, str]:
    """Where something could be wrong, the name of the field, code and message."""
    if path in IMAGE_PATHS:
        return "body", "n", "batch_size_too_large", DETAILS["invalid-request"]
    if path == "/v1/interpolate":
        return "body", "frames", "frames_too_large", DETAILS["invalid-request"]
    if path.startswith("/v1/images/"):
        return "query", "steps", "steps_out_of_range", "Should be from 1 to 40 for this model."
    if path.startswith("/v1/models"):
        return "query", "x", "unknown_parameter", "Unknown parameter"
    return "body", "batch_size", "batch_size_too_large", DETAILS["invalid-request"]


def add_refusals(path: str, method: str, operation: dict[str, Any], *, with_keys: bool) -> None:
    """Adds a response for each status that the operation can refuse with."""
    by_status: dict[int, list[str]] = {}
    for slug in slugs_of(path, method):
        if slug != "unauthorized" or with_keys:
            by_status.setdefault(PROBLEMS[slug][0], []).append(slug)
    for status, slugs in sorted(by_status.items()):
        operation["responses"][str(status)] = _response(path, status, slugs)


def _response(path: str, status: int, slugs: list[str]) -> dict[str, Any]:
    openai = path in IMAGE_PATHS
    examples = {}
    for slug in slugs:
        problem = example_of(slug, path)
        examples[slug] = {"value": {"error": error_object(problem, path)} if openai else problem}
    schema = {"$ref": f"#/components/schemas/{'OpenAIError' if openai else 'Problem'}"}
    media_type = "application/json" if openai else MEDIA_TYPE
    response: dict[str, Any] = {
        "description": "; ".join(PROBLEMS[slug][1] for slug in slugs),
        "content": {media_type: {"schema": schema, "examples": examples}},
    }
    if status in WITH_RETRY_AFTER:
        seconds = {"type": "integer", "minimum": 1}
        response["headers"] = {
            "Retry-After": {"schema": seconds, "description": "Seconds, where it is worth asking again."}
        }
    return response

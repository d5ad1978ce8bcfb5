"""The OpenAPI document: FastAPI's, with what it cannot know: problem documents, keys, headers."""

from __future__ import annotations

import warnings
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.openai_errors import IMAGE_PATHS
from service.api.openapi_errors import OPENAI_ERROR, add_refusals
from service.api.openapi_examples import add_examples
from service.api.problems import MEDIA_TYPE, PROBLEMS, TYPE_PREFIX

__all__ = ["build_openapi"]

DESCRIPTION: Final = """\
Images from consistency models. A seed always gives the same bytes, whatever else the server does.

Every refusal is a problem document (RFC 9457), `application/problem+json`, whose `type` ends in one of the slugs
of the schema `Problem`. Every answer carries `X-Request-ID`.
"""

FIELD_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["loc", "code", "message"],
    "properties": {
        "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
        "code": {"type": "string", "description": "A stable word in snake_case."},
        "message": {"type": "string", "description": "Never repeats the input."},
    },
}

PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string", "enum": [TYPE_PREFIX + slug for slug in PROBLEMS]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "The path of the request, if one was understood."},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/FieldError"}},
        "error": {
            "type": "object",
            "description": "At `/v1/models`, unserved paths below `/v1/`, and of a 401: the same for OpenAI's clients.",
        },
    },
    "example": {
        "type": TYPE_PREFIX + "invalid-request",
        "title": PROBLEMS["invalid-request"][1],
        "status": 422,
        "detail": "The number is out of range.",
        "instance": "/v1/generate",
        "request_id": "req_01J9ZKQ0T4S8V6W2X1Y3A5B7C9",
        "errors": [{"loc": ["body", "seed"], "code": "number_too_large", "message": "The number is out of range."}],
    },
}

SECURITY_SCHEMES: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

FREE: Final = frozenset({"/livez", "/readyz", "/healthz"})


def build_openapi(app: FastAPI, *, root_path: str, with_keys: bool, public_images: bool) -> dict[str, Any]:
    """The document of an app. `with_keys`: keys are needed; `public_images`: not for GET of images."""
    with warnings.catch_warnings():
        # GET and HEAD of one route share an operation id; HEAD is left out below.
        warnings.filterwarnings("ignore", message="Duplicate Operation ID")
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=DESCRIPTION,
            routes=app.routes,
            servers=[{"url": root_path}] if root_path else None,
        )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas.update(Problem=PROBLEM, FieldError=FIELD_ERROR, OpenAIError=OPENAI_ERROR)
    if with_keys:
        components["securitySchemes"] = SECURITY_SCHEMES
    for path, operations in document["paths"].items():
        operations.pop("head", None)
        free = path in FREE or (public_images and path.startswith("/v1/images/"))
        for method, operation in operations.items():
            needs_key = with_keys and not (free and method == "get")
            _describe(path, operation, needs_key)
            add_examples(operation)
            add_refusals(path, method, operation, with_keys=needs_key)
    return document


def _describe(path: str, operation: dict[str, Any], needs_key: bool) -> None:
    responses = operation.setdefault("responses", {})
    if "HTTPValidationError" in str(responses.get("422", "")):
        del responses["422"]
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    if path in IMAGE_PATHS:
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
    responses.setdefault("default", {"description": "Any other refusal", "content": content})
    if needs_key:
        operation["security"] = [{"bearer": []}, {"key": []}]

"""Refusals as problem documents (RFC 9457): the one table from errors to statuses, and the handlers.

A `type` is `urn:onestep:problems/<slug>`. Clients may rely on the slug; `detail` is for people. Nothing that the
client sent is repeated but the path (`instance`) and the names of its fields.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from service.api.middleware.paths import route_path
from service.api.negotiation import NotAcceptable
from service.api.openai_errors import error_object, speaks_openai, suits_openai
from service.errors import (
    DeadlineExceeded,
    Draining,
    EngineLost,
    InferenceFailed,
    InvalidRequest,
    NotReady,
    OutOfReach,
    Overloaded,
    QuotaExceeded,
    ServiceError,
    Unavailable,
    UnknownModel,
)

__all__ = [
    "MEDIA_TYPE",
    "PROBLEMS",
    "SLUG_OF",
    "FieldError",
    "ProblemError",
    "count_problem",
    "document",
    "install_handlers",
    "problem_of",
    "problem_response",
]

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:onestep:problems/"

# slug -> status, title
PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "bad-request": (400, "Not what it claims to be"),
    "unauthorized": (401, "Key missing or wrong"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "not-acceptable": (406, "Not acceptable"),
    "body-timeout": (408, "Body not received in time"),
    "body-too-large": (413, "Body too large"),
    "unsupported-media-type": (415, "Unsupported media type"),
    "invalid-request": (422, "Invalid request"),
    "quota-exceeded": (429, "Quota exceeded"),
    "head-too-large": (431, "Head too large"),
    "internal-error": (500, "Internal error"),
    "inference-failed": (500, "Inference failed"),
    "unavailable": (503, "Unavailable"),
    "overloaded": (503, "Overloaded"),
    "not-ready": (503, "Not ready"),
    "draining": (503, "Stopping"),
    "engine-lost": (503, "Engine lost"),
    "deadline-exceeded": (504, "Deadline exceeded"),
}

# The class of an error, or the nearest above it, decides.
SLUG_OF: Final[dict[type[ServiceError], str]] = {
    ServiceError: "internal-error",
    InvalidRequest: "invalid-request",
    UnknownModel: "not-found",
    QuotaExceeded: "quota-exceeded",
    Unavailable: "unavailable",
    Overloaded: "overloaded",
    NotReady: "not-ready",
    Draining: "draining",
    EngineLost: "engine-lost",
    DeadlineExceeded: "deadline-exceeded",
    OutOfReach: "deadline-exceeded",
    InferenceFailed: "inference-failed",
}

SLUG_OF_STATUS: Final[dict[int, str]] = {
    400: "bad-request",
    401: "unauthorized",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    408: "body-timeout",
    413: "body-too-large",
    415: "unsupported-media-type",
    422: "invalid-request",
    503: "unavailable",
}

MAX_NAME: Final = 64  # characters of a client's own field name that are shown
MAX_INSTANCE: Final = 512


class FieldError(msgspec.Struct, frozen=True):
    """One wrong field: its path, a stable snake_case code, and a sentence that never repeats the value."""

    loc: tuple[str | int, ...]
    code: str
    message: str


class ProblemError(Exception):
    """A refusal that only HTTP knows of (a media type, a body's size). `slug` is a key of `PROBLEMS`."""

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(detail)
        self.slug = slug
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = tuple(errors)

    @property
    def status(self) -> int:
        """The status that its slug stands for."""
        return PROBLEMS[self.slug][0]


def problem_of(error: ServiceError) -> ProblemError:
    """The refusal that an error of the core becomes. `Retry-After` is in whole seconds, rounded up."""
    slug = next(SLUG_OF[kind] for kind in type(error).__mro__ if kind in SLUG_OF)
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable | QuotaExceeded) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    errors: tuple[FieldError, ...] = ()
    if isinstance(error, InvalidRequest):
        errors = tuple(FieldError(one.loc, one.code, one.message) for one in error.errors)
    return ProblemError(slug, str(error), headers=headers, errors=errors)


def document(scope: Scope, problem: ProblemError) -> dict[str, Any]:
    """The problem document of a refusal, for one request."""
    status, title = PROBLEMS[problem.slug]
    state = scope.get("state", {})
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + problem.slug,
        "title": title,
        "status": status,
        "detail": problem.detail,
        "instance": quote(scope.get("path", ""), safe="/:@!$&'()*+,;=~")[:MAX_INSTANCE],
        "request_id": state.get("request_id"),
    }
    if problem.errors:
        body["errors"] = [
            {"loc": [_shown(part) for part in error.loc], "code": error.code, "message": error.message}
            for error in problem.errors
        ]
    return body


def count_problem(scope: Scope, problem: ProblemError) -> None:
    """Counts a refusal under its slug."""
    context = getattr(scope["app"].state, "context", None)
    if context is not None:
        context.metrics.request_failures.labels(problem.slug).inc()


def problem_response(scope: Scope, problem: ProblemError, *, counted: bool = True) -> Response:
    """The answer that carries a refusal; never stored by caches. Counted under its slug, but for probes."""
    if counted:
        count_problem(scope, problem)
    body, media_type = document(scope, problem), MEDIA_TYPE
    if speaks_openai(scope):
        body, media_type = {"error": error_object(body, route_path(scope))}, "application/json"
    elif suits_openai(scope, problem.status):
        body["error"] = error_object(body, route_path(scope))
    return Response(
        msgspec.json.encode(body),
        status_code=problem.status,
        headers={"Cache-Control": "no-store", **problem.headers},
        media_type=media_type,
    )


def _shown(part: str | int) -> str | int:
    """A part of a path as it is shown: names that a client made up are cut, and made printable."""
    if isinstance(part, int):
        return part
    text = part if len(part) <= MAX_NAME else part[: MAX_NAME - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem_response(request.scope, error)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    problem = problem_of(error)
    if PROBLEMS[problem.slug][0] == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("a request failed: %s", error, exc_info=error)
    return problem_response(request.scope, problem)


async def _on_not_acceptable(request: Request, error: Exception) -> Response:
    assert isinstance(error, NotAcceptable)
    detail = f"{error} There is: {', '.join(error.available)}."
    return problem_response(request.scope, ProblemError("not-acceptable", detail))


async def _on_framework_validation(request: Request, error: Exception) -> Response:
    """FastAPI's own validation, whose default answer repeats the input and breaks on NaN."""
    assert isinstance(error, RequestValidationError)
    errors = [FieldError(tuple(item["loc"]), str(item["type"]), str(item["msg"])) for item in error.errors()]
    detail = "A value of the request is not valid."
    return problem_response(request.scope, ProblemError("invalid-request", detail, errors=errors))


DETAILS: Final[dict[int, str]] = {
    404: "There is nothing at this path.",
    405: "This path does not take this method; the Allow header lists those it does.",
}


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths, methods, unreadable multipart."""
    assert isinstance(error, HTTPException)
    slug = SLUG_OF_STATUS.get(error.status_code)
    if slug is None:
        slug = "bad-request" if error.status_code < 500 else "internal-error"
    detail = DETAILS.get(error.status_code, str(error.detail))
    return problem_response(request.scope, ProblemError(slug, detail, headers=error.headers))


def install_handlers(app: FastAPI) -> None:
    """Makes every refusal of the application a problem document."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(NotAcceptable, _on_not_acceptable)
    app.add_exception_handler(RequestValidationError, _on_framework_validation)
    app.add_exception_handler(HTTPException, _on_http_exception)

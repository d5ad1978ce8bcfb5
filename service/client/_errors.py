"""Everything a client's call can raise.

OnestepError
├── ConnectionFailed         no answer, or one that broke off
├── InvalidAnswer            an answer that no Onestep service gives
└── ApiError                 the service refused, or failed, and said why
    ├── InvalidRequest       400, 406, 413, 415, 422: change the request
    ├── AuthenticationFailed 401
    ├── NotFound             404: no such route, model, revision or class
    ├── QuotaExceeded        429: this client's own limit
    ├── Unavailable          502, 503: the service's state
    └── DeadlineExceeded     408, 504
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

__all__ = [
    "ApiError",
    "AuthenticationFailed",
    "ConnectionFailed",
    "DeadlineExceeded",
    "FieldError",
    "InvalidAnswer",
    "InvalidRequest",
    "NotFound",
    "OnestepError",
    "QuotaExceeded",
    "Unavailable",
    "error_of_answer",
    "error_of_problem",
]


class OnestepError(Exception):
    """Base of all errors of `service.client`."""


class ConnectionFailed(OnestepError):
    """No answer came, or it broke off; the cause is the `httpx` error, if there was one."""


class InvalidAnswer(OnestepError):
    """An answer came that no Onestep service gives."""


class FieldError(msgspec.Struct, frozen=True):
    """One wrong field of a request."""

    loc: tuple[str | int, ...]
    code: str
    message: str


class ApiError(OnestepError):
    """The service refused or failed. `slug` is the stable end of the problem's `type`, such as `overloaded`."""

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        slug: str = "",
        request_id: str | None = None,
        retry_after: float | None = None,
        errors: tuple[FieldError, ...] = (),
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.slug = slug
        self.request_id = request_id
        self.retry_after = retry_after  # seconds; None when the service did not say
        self.errors = errors

    def __str__(self) -> str:
        fields = "; ".join(f"{'.'.join(map(str, error.loc[1:]))}: {error.message}" for error in self.errors)
        return f"{fields or self.detail} ({self.status} {self.slug or 'without a problem document'})"


class InvalidRequest(ApiError):
    """The request is not valid as it is; `errors` names its fields."""


class AuthenticationFailed(ApiError):
    """The key is missing or wrong."""


class NotFound(ApiError):
    """No such route, model, revision or class."""


class QuotaExceeded(ApiError):
    """This client already has as much work outstanding as it may have."""


class Unavailable(ApiError):
    """The service is overloaded, starting or stopping, or this request kills its engine: `slug` says which."""


class DeadlineExceeded(ApiError):
    """The deadline passed while the request waited or ran."""


KINDS: Final[dict[int, type[ApiError]]] = {
    **dict.fromkeys((400, 406, 413, 415, 422), InvalidRequest),
    401: AuthenticationFailed,
    404: NotFound,
    429: QuotaExceeded,
    **dict.fromkeys((502, 503), Unavailable),
    **dict.fromkeys((408, 504), DeadlineExceeded),
}


class _Problem(msgspec.Struct):
    """What is read of a problem document."""

    type: str = ""
    status: int = 0
    detail: str = ""
    request_id: str | None = None
    errors: tuple[FieldError, ...] = ()


def error_of_problem(body: bytes, status: int = 0, headers: Mapping[str, str] | None = None) -> ApiError:
    """The exception for a problem document; `status` and `headers` are its answer's, if it was one."""
    headers = headers or {}
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = _Problem(detail="The answer has no problem document; a proxy may have given it.")
    status = status or problem.status
    arguments: dict[str, Any] = {
        "status": status,
        "slug": problem.type.rpartition("/")[2],
        "request_id": problem.request_id or headers.get("x-request-id"),
        "retry_after": _retry_after(headers.get("retry-after")),
        "errors": problem.errors,
    }
    return KINDS.get(status, ApiError)(problem.detail, **arguments)


def error_of_answer(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The exception for an answer that is no success."""
    return error_of_problem(body, status, headers)


def _retry_after(value: str | None) -> float | None:
    """Seconds from now of a `Retry-After` header, which is seconds or a date."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None

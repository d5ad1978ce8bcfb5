"""When a call is worth another try, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import httpx

from service.client._errors import ApiError

__all__ = ["DEFAULT_RETRIES", "Retries"]

# What may be over the next time. A 504 is the request's own deadline, a 500 a fault that would come again.
STATUSES: Final = frozenset({408, 429, 502, 503})
DEADLY: Final = "engine-lost"  # the request itself kills engines
QUOTA: Final = "quota-exceeded"  # without `Retry-After` it asks for more than it is ever allowed
LOST: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError)


@dataclass(frozen=True)
class Retries:
    """How often a call is tried again. Asking twice does no harm: a seed gives the same image each time.

    The service's `Retry-After` is honoured; where it names none, the wait begins at `backoff` and doubles. A
    call that would have to wait longer than `max_wait` seconds fails at once.
    """

    count: int = 2
    backoff: float = 0.5
    max_wait: float = 60.0

    def after_refusal(self, attempt: int, error: ApiError) -> float | None:
        """Seconds until try `attempt + 1`; None when there is none. `attempt` counts from 0."""
        if error.status not in STATUSES or error.slug == DEADLY:
            return None
        if error.slug == QUOTA and error.retry_after is None:
            return None
        return self._wait(attempt, error.retry_after)

    def after_failure(self, attempt: int, error: httpx.RequestError) -> float | None:
        """The same after a connection that failed."""
        return self._wait(attempt, None) if isinstance(error, LOST) else None

    def _wait(self, attempt: int, asked: float | None) -> float | None:
        if attempt >= self.count:
            return None
        jitter = 1 + random.random() / 4  # noqa: S311 (spreads clients, guards nothing)
        wait = self.backoff * 2**attempt * jitter if asked is None else asked + self.backoff * (jitter - 1)
        return wait if wait <= self.max_wait else None


DEFAULT_RETRIES: Final = Retries()

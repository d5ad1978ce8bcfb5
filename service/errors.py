"""Every error a caller of the service can meet, as one tree.

The core raises these; only `service.api.problems` knows HTTP status codes.

    ServiceError
    ├── InvalidRequest          understood, but not valid: names the field
    ├── UnknownModel            no such model, revision or class
    ├── QuotaExceeded           the client's own limit of outstanding image-steps
    ├── Unavailable             the state of the service
    │   ├── Overloaded          the backlog would break the deadline or max_queue_time
    │   ├── NotReady            no engine is ready
    │   ├── Draining            the service is stopping
    │   └── EngineLost          the engine died under this request alone, or cannot be brought back
    ├── DeadlineExceeded        the deadline passed while the request waited or ran
    │   └── OutOfReach          it would on an idle server, too
    └── InferenceFailed         a fault of ours while the request ran
    FatalModelError             a model that can never be served: ends the service, never retried
"""

from __future__ import annotations

__all__ = [
    "DeadlineExceeded",
    "Draining",
    "EngineLost",
    "FatalModelError",
    "InferenceFailed",
    "InvalidRequest",
    "NotReady",
    "OutOfReach",
    "Overloaded",
    "QuotaExceeded",
    "ServiceError",
    "Unavailable",
    "UnknownModel",
]


class ServiceError(Exception):
    """Base of all errors a request can end in; `str(error)` is safe to show to the client."""


class InvalidRequest(ServiceError):
    """A value is understood but not valid.

    `loc` is the path of the field (`("body", "seed")`), `code` a stable snake_case word. `message` never
    repeats the input. Several at once: the first carries the `others`, and `errors` lists them all.
    """

    def __init__(
        self, message: str, *, loc: tuple[str | int, ...], code: str, others: tuple[InvalidRequest, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.loc = loc
        self.code = code
        self.others = others

    @property
    def errors(self) -> tuple[InvalidRequest, ...]:
        """This one and the others, in the order found."""
        return (self, *self.others)


class UnknownModel(ServiceError):
    """No model, revision or class of that name is served here."""


class QuotaExceeded(ServiceError):
    """The client already has `max_client_image_steps` outstanding.

    `retry_after` is in seconds, None when the request alone needs more than that.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(ServiceError):
    """The service cannot take the request now. `retry_after` in seconds, None when it cannot be known."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """The backlog would break the request's deadline or `max_queue_time`."""


class NotReady(Unavailable):
    """The engine is still loading, or the model is not ready."""


class Draining(Unavailable):
    """The service is stopping and takes nothing new."""


class EngineLost(Unavailable):
    """The engine died while it ran this request alone, or its restart budget is spent."""


class DeadlineExceeded(ServiceError):
    """The request's deadline passed while it waited or ran."""


class OutOfReach(DeadlineExceeded):
    """The deadline is nearer than the end of the request would be on an idle server, `seconds` after its begin."""

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class InferenceFailed(ServiceError):
    """A fault of ours while the request ran (a result that is not finite, for example)."""


class FatalModelError(Exception):
    """A model that can never be served, with the file and the reason in one sentence."""

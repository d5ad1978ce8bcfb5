"""Runs a plan and renders its answer: what the routes that make images have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.api.answers import Timings
from service.api.context import Context
from service.api.negotiation import AnswerForm, NotAcceptable
from service.api.planning import Plan
from service.api.problems import ProblemError
from service.api.rendering import Finished, Rendered
from service.engine.client import SampleFinished, SamplePreview
from service.engine.request import SampleResult
from service.errors import (
    DeadlineExceeded,
    EngineLost,
    InferenceFailed,
    InvalidRequest,
    OutOfReach,
    QuotaExceeded,
    Unavailable,
    UnknownModel,
)
from service.metrics import Metrics

__all__ = ["LATE", "NO_TIME", "Observation", "Run", "image_headers", "observed", "server_timing"]

NO_TIME: Final = Timings(queue_ms=0, inference_ms=0, encode_ms=0, total_ms=0)  # of what was made before

LATE: Final = "The deadline passed while the request waited or ran."


class Run:
    """A plan that the engine has accepted, with its answer's form. Making one raises what `submit` raises."""

    def __init__(self, context: Context, plan: Plan, form: AnswerForm, *, request_id: str, arrived: float) -> None:
        self._context = context
        self.plan = plan
        self._form = form
        self._request_id = request_id
        self._arrived = arrived
        self._submitted = time.monotonic()
        try:
            self._submission = context.engine.submit(plan.samples)
        except OutOfReach as error:
            raise plan.refusal(error, arrived) from None

    async def result(self) -> Rendered:
        """The rendered answer. Raises `DeadlineExceeded`, `EngineLost` or `InferenceFailed`."""
        rendered = await self._context.renderer.render(await self.all_finished(), self._form)
        self._context.metrics.encode_time.observe(rendered.encode_seconds)
        return rendered

    async def all_finished(self) -> Finished:
        """All images, not encoded yet, instead of `result`; raises the same."""
        try:
            async with asyncio.timeout(self.plan.deadline - time.monotonic()):
                results = await self._submission.results()
        except TimeoutError:
            raise DeadlineExceeded(LATE) from None
        finally:
            self.cancel()
        return self.finished(results)

    @property
    def fingerprint(self) -> str:
        """Numerics of the engine that made the images, once they are made."""
        return self._submission.fingerprint

    @property
    def position(self) -> int:
        """Image-steps that were ahead of it on submission."""
        return self._submission.position

    def events(self) -> AsyncIterator[SampleFinished | SamplePreview]:
        """Images and previews as they come, instead of `result`; raises the same, but knows no deadline itself."""
        return self._submission.events()

    def finished(self, results: list[SampleResult]) -> Finished:
        """All results in order, booked in the metrics."""
        finished = Finished(self.plan, results, self._request_id, self._arrived, self._submitted)
        metrics = self._context.metrics
        metrics.request_queue_time.observe(finished.queue_seconds)
        metrics.inference_time.observe(finished.inference_seconds)
        metrics.images.labels(self.plan.model.name).inc(len(results))
        return finished

    def cancel(self) -> None:
        """Frees its places before the next step; after the end that does nothing."""
        self._submission.cancel()


class Observation:
    """One request for images: counts once how it ended, and how long it took when it was answered with them."""

    def __init__(self, metrics: Metrics, route: str) -> None:
        self._metrics = metrics
        self._route = route
        self._began = time.perf_counter()
        self.goes_on = False  # True: the answer is a stream, and whoever writes it calls `end`

    def end(self, error: BaseException | None = None) -> None:
        """Counts it. `error` is what it ended in, None for success."""
        self._metrics.requests.labels(self._route, "ok" if error is None else _outcome(error)).inc()
        if error is None:
            self._metrics.e2e_request_latency.labels(self._route).observe(time.perf_counter() - self._began)


@contextmanager
def observed(metrics: Metrics, route: str) -> Iterator[Observation]:
    """Observes a request until the block ends, or until its stream does."""
    observation = Observation(metrics, route)
    try:
        yield observation
    except BaseException as error:
        observation.end(error)
        raise
    if not observation.goes_on:
        observation.end()


def _outcome(error: BaseException) -> str:
    match error:
        case ClientDisconnect() | asyncio.CancelledError():
            return "cancelled"
        case DeadlineExceeded():
            return "expired"
        case EngineLost() | InferenceFailed():
            return "failed"
        case Unavailable() | QuotaExceeded():
            return "rejected"
        case InvalidRequest() | UnknownModel() | NotAcceptable() | ProblemError() | HTTPException():
            return "invalid"
    return "failed"


def server_timing(timings: Timings, arrived: float, cache: str | None = None) -> str:
    """The `Server-Timing` header in milliseconds; `total` counts from this request's own arrival until now."""
    total = (time.monotonic() - arrived) * 1000
    entry = "" if cache is None else f"cache;desc={cache}, "
    return (
        f"{entry}queue;dur={timings['queue_ms']:.3f}, inference;dur={timings['inference_ms']:.3f}, "
        f"encode;dur={timings['encode_ms']:.3f}, total;dur={total:.3f}"
    )


def image_headers(plan: Plan) -> dict[str, str]:
    """Which images these are; comma-separated for a batch. No class on an unconditional model."""
    headers = {
        "X-Model-Revision": plan.model.revision,
        "X-Seed": ",".join(str(sample.seed) for sample in plan.samples),
    }
    if plan.model.class_conditional:
        headers["X-Class-Label"] = ",".join(str(sample.class_label) for sample in plan.samples)
    return headers

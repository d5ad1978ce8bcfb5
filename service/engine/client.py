"""The seam between HTTP and the engines: what the HTTP process may ask of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from service.engine.request import ModelStatus, Preview, Sample, SampleResult


class SampleFinished(msgspec.Struct, frozen=True):
    """Image `index` of the request is ready."""

    index: int
    result: SampleResult


class SamplePreview(msgspec.Struct, frozen=True):
    """A preview of image `index`. Dropped first when the reader is slow."""

    index: int
    preview: Preview


class Submission(Protocol):
    """One accepted request. Cancel it when nobody waits any more; after the end that does nothing."""

    position: int  # image-steps that were ahead of it on submission
    fingerprint: str  # numerics of the engine that makes, or made, all of its images

    async def results(self) -> list[SampleResult]:
        """All images in order. Raises DeadlineExceeded, EngineLost or InferenceFailed for the whole request."""

    def events(self) -> AsyncIterator[SampleFinished | SamplePreview]:
        """Images and previews as they come; ends after the last image, raises as `results` does."""

    def cancel(self) -> None:
        """Frees its places before the next step."""


class Fatality(msgspec.Struct, frozen=True):
    """Why nothing will ever be served again."""

    reason: str
    budget_spent: bool  # True: the restart budget is spent; False: a model can never be served


class EngineObserver(Protocol):
    """Whom the client tells what metrics show. All calls are cheap and on the event loop."""

    def load(self, *, requests_running: int, requests_waiting: int, images_waiting: int) -> None:
        """Requests with a sample that has begun, those without, and samples that have not begun."""

    def step(self, model: str, *, rows: int, size: int, seconds: float) -> None:
        """A forward of `size` rows, of which `rows` were real, took `seconds`."""

    def engines_ready(self, count: int) -> None:
        """How many engines can take work."""

    def engine_lost(self, cause: str) -> None:
        """An engine died, hung, went silent, or found its model unservable."""


class EngineClient(Protocol):
    """Work goes in, results come out, whatever happens to the engines behind it."""

    def submit(self, samples: Sequence[Sample]) -> Submission:
        """Accepts one request (ids and `request` are filled in here), or refuses it at once.

        Raises `Overloaded`, `QuotaExceeded`, `NotReady`, `Draining`, `EngineLost`, or `OutOfReach`
        (a deadline that even an idle engine could not meet).
        """

    def status(self, model: str) -> ModelStatus | None:
        """What the engine found out about a model; None before it was ready for the first time."""

    @property
    def not_ready_reason(self) -> str | None:
        """None when an engine is loaded, warm and making progress; else why not, in one sentence."""

    @property
    def fatal(self) -> asyncio.Future[Fatality]:
        """Resolved when the service should end because nothing will ever be served again."""

    async def start(self) -> None:
        """Starts the engines and returns at once; readiness shows in `not_ready_reason`. Again it does nothing."""

    async def close(self) -> None:
        """Ends the engines; what is unanswered fails with `Draining`. Leaves no process behind."""

"""Server-sent events: a request's way to its images, told while it is under way.

The engine is never held up by a reader. What a reader has not taken yet waits in the request's own queue, where
previews are dropped first and results never; one event at a time is encoded and sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.answers import ImageEntry, Timings
from service.api.context import Context
from service.api.disconnect import until_disconnect
from service.api.generation import LATE, Observation, Run, image_headers
from service.api.negotiation import OutputFormat
from service.api.planning import Plan
from service.api.problems import ProblemError, count_problem, document, problem_of
from service.api.rendering import encode_image, encode_preview, image_entry
from service.engine.client import SampleFinished, SamplePreview
from service.engine.request import SampleResult
from service.errors import DeadlineExceeded, ServiceError

__all__ = ["EventStream", "EventWords", "Words", "event"]

log = logging.getLogger(__name__)

COMMENT_EVERY: Final = 10.0  # seconds of silence after which a proxy could think the answer dead
COMMENT: Final = b": still here\n\n"
LATE_BY: Final = 1.0  # seconds past the deadline within which the engine client should have said so itself

HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept"}


def event(name: str, data: object) -> bytes:
    """One event; JSON has no line breaks, so its data is one line."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


class Words(Protocol):
    """What the events of a stream are called and hold. An empty answer sends nothing."""

    preview_format: OutputFormat

    def wants(self, step: int) -> bool:
        """Whether a preview of this step (1-based) is to be encoded and sent."""

    def queued(self, position: int) -> bytes:
        """The request is accepted, with `position` image-steps ahead of it."""

    def step(self, index: int, step: int, data: bytes) -> bytes:
        """The denoised estimate of image `index` after a step."""

    def image(self, entry: ImageEntry) -> bytes:
        """An image is done."""

    def done(self, timings: Timings) -> bytes:
        """All of them are."""

    def error(self, problem: Mapping[str, Any]) -> bytes:
        """It ends in a problem document."""


class EventWords:
    """The events of this service's own routes."""

    preview_format: OutputFormat = "png"

    def __init__(self, plan: Plan) -> None:
        self._steps = len(plan.sigmas)

    def wants(self, step: int) -> bool:
        """The engine gives only those that were asked for."""
        return True

    def queued(self, position: int) -> bytes:
        """`queued {position}`."""
        return event("queued", {"position": position})

    def step(self, index: int, step: int, data: bytes) -> bytes:
        """`step {index, step, num_inference_steps, b64_json}`."""
        body = {"index": index, "step": step, "num_inference_steps": self._steps, "b64_json": data}
        return event("step", body)

    def image(self, entry: ImageEntry) -> bytes:
        """`image` with an entry of the JSON answer's `images`."""
        return event("image", entry)

    def done(self, timings: Timings) -> bytes:
        """`done {timings}`."""
        return event("done", {"timings": timings})

    def error(self, problem: Mapping[str, Any]) -> bytes:
        """`error` with the problem document."""
        return event("error", problem)


class EventStream(Response):
    """The answer to an accepted request as events. When the client leaves, what is left is cancelled."""

    def __init__(self, context: Context, run: Run, observation: Observation, words: Words) -> None:
        self._context = context
        self._run = run
        self._words = words
        self._observation = observation
        self._encode_seconds = 0.0
        observation.goes_on = True
        super().__init__(status_code=200, headers=HEADERS | image_headers(run.plan))
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Writes the stream; raises `ClientDisconnect` when nobody reads it any more."""
        error: BaseException | None = None
        try:
            error = await until_disconnect(Request(scope, receive), self._write(scope, send))
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._run.cancel()
            self._observation.end(error)

    async def _write(self, scope: Scope, send: Send) -> BaseException | None:
        """Everything from the head to the last event; returns what the stream ended in."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def write(data: bytes) -> None:
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})

        ended_in: BaseException | None = None
        try:
            await write(self._words.queued(self._run.position))
            await self._write_events(write)
        except Exception as error:
            ended_in = error
            await write(self._words.error(document(scope, _refusal(scope, error))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return ended_in

    async def _write_events(self, write: Write) -> None:
        results: dict[int, SampleResult] = {}
        async with contextlib.aclosing(self._events(write)) as events:
            async for item in events:
                if isinstance(item, SampleFinished):
                    results[item.index] = item.result
                    await write(await self._image(item))
                elif self._words.wants(item.preview.step):
                    await write(await self._preview(item))
        finished = self._run.finished([results[index] for index in sorted(results)])
        self._context.metrics.encode_time.observe(self._encode_seconds)
        await write(self._words.done(finished.timings(self._encode_seconds)))

    async def _events(self, write: Write) -> AsyncGenerator[SampleFinished | SamplePreview]:
        """The run's events, with a comment wherever there is none for a while."""
        source = aiter(self._run.events())
        deadline = self._run.plan.deadline + LATE_BY
        coming: asyncio.Future[SampleFinished | SamplePreview] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(source))
                patience = min(COMMENT_EVERY, max(0.0, deadline - time.monotonic()))
                await asyncio.wait((coming,), timeout=patience)
                if coming.done():
                    try:
                        item = coming.result()
                    except StopAsyncIteration:
                        return
                    coming = None
                    yield item
                elif time.monotonic() >= deadline:
                    raise DeadlineExceeded(LATE)
                else:
                    await write(COMMENT)
        finally:
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.wait((coming,))

    async def _image(self, item: SampleFinished) -> bytes:
        began = time.monotonic()
        image = await self._context.renderer.call(encode_image, self._run.plan, item.index, item.result)
        self._encode_seconds += time.monotonic() - began
        return self._words.image(image_entry(self._run.plan, image))

    async def _preview(self, item: SamplePreview) -> bytes:
        preview, output_format = item.preview, self._words.preview_format
        data = await self._context.renderer.call(encode_preview, self._run.plan, preview, output_format)
        return self._words.step(item.index, preview.step, data)


class Write(Protocol):
    """Sends a piece of the stream; waits while the reader is slow."""

    async def __call__(self, data: bytes) -> None:
        """Nothing is sent for no data."""


def _refusal(scope: Scope, error: Exception) -> ProblemError:
    """What the last event says of an error, counted and logged as for any other answer."""
    if isinstance(error, ServiceError):
        problem = problem_of(error)
    else:
        problem = ProblemError("internal-error", "A fault of ours; the log has it under this request id.")
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("a stream failed: %s", error, exc_info=error)
    count_problem(scope, problem)
    return problem

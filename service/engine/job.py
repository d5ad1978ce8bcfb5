"""One accepted request in the HTTP process: what is done of it, who waits for it, how it ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from service.engine.client import SampleFinished, SamplePreview
from service.engine.request import Preview, Sample, SampleResult
from service.errors import InferenceFailed, ServiceError

MAX_PREVIEWS = 16  # kept for a reader that is slow; older ones are dropped, results never


class Job:
    """A request's samples, results and readers; the `Submission` that the HTTP layer holds."""

    def __init__(self, samples: Sequence[Sample], position: int, on_cancel: Callable[[Job], None]) -> None:
        self.samples = {sample.id: sample for sample in samples}
        self.position = position
        self.steps_left = {sample.id: len(sample.sigmas) for sample in samples}
        self._index = {sample.id: i for i, sample in enumerate(samples)}
        self._results: dict[int, SampleResult] = {}
        self._previewed: dict[int, int] = {}  # sample -> last step shown, so that a replay repeats none
        self._events: deque[SampleFinished | SamplePreview] = deque()
        self._changed = asyncio.Event()
        self._taken = False
        self._ended = False
        self._error: ServiceError | None = None
        self._on_cancel = on_cancel
        self.fingerprint = ""  # set when it is sent to an engine
        self.strikes = 0  # against it for deaths of an engine that ran it alone

    @property
    def id(self) -> int:
        """The request number that all its samples bear."""
        return next(iter(self.samples.values())).request

    @property
    def client(self) -> str:
        """Whose request it is."""
        return next(iter(self.samples.values())).client

    @property
    def model(self) -> str:
        """The model it runs on."""
        return next(iter(self.samples.values())).model

    @property
    def image_steps(self) -> int:
        """What the whole request asked for."""
        return next(iter(self.samples.values())).request_steps

    @property
    def ended(self) -> bool:
        """Whether it is answered, failed or cancelled."""
        return self._ended

    def unfinished(self) -> list[Sample]:
        """Samples without a result."""
        return [sample for sample in self.samples.values() if sample.id not in self._results]

    @property
    def images_left(self) -> int:
        """How many samples are without a result."""
        return len(self.samples) - len(self._results)

    def outstanding(self) -> int:
        """Image-steps still to do."""
        return sum(self.steps_left.values())

    def isolate(self) -> None:
        """Marks it as a suspect: from now on it shares no batch with another request."""
        for sample in self.samples.values():
            sample.isolated = True

    @property
    def isolated(self) -> bool:
        """Whether it is a suspect."""
        return next(iter(self.samples.values())).isolated

    def replay(self, *, whole: bool) -> list[Sample]:
        """What to send to the next engine: the unfinished samples from their seeds, or all of them.

        Raises InferenceFailed when all of them are due but some were already handed out.
        """
        if whole and self._results:
            if self._taken:
                raise InferenceFailed("the engine came back with other numerics in the middle of the answer")
            self._results.clear()
            self._events.clear()
        samples = self.unfinished()
        for sample in samples:
            self.steps_left[sample.id] = len(sample.sigmas)
        return samples

    def stepped(self, sample: int) -> None:
        """Counts one step of a sample."""
        self.steps_left[sample] = max(0, self.steps_left[sample] - 1)

    def previewed(self, sample: int, preview: Preview) -> None:
        """Queues a preview for the reader, unless an earlier life of the engine already gave it."""
        if preview.step <= self._previewed.get(sample, 0):
            return
        self._previewed[sample] = preview.step
        waiting = [event for event in self._events if isinstance(event, SamplePreview)]
        if len(waiting) >= MAX_PREVIEWS:
            self._events.remove(waiting[0])
        self._events.append(SamplePreview(self._index[sample], preview))
        self._changed.set()

    def finished(self, sample: int, result: SampleResult) -> bool:
        """Keeps a result; True when it was the last one."""
        self._results[sample] = result
        self.steps_left[sample] = 0
        self._events.append(SampleFinished(self._index[sample], result))
        self._ended = len(self._results) == len(self.samples)
        self._changed.set()
        return self._ended

    def fail(self, error: ServiceError) -> None:
        """Ends it with an error."""
        self._error = error
        self._ended = True
        self._changed.set()

    async def results(self) -> list[SampleResult]:
        """All images in order; raises how the request failed."""
        while not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error
        return [self._results[sample] for sample in self.samples]

    async def events(self) -> AsyncIterator[SampleFinished | SamplePreview]:
        """Images and previews as they come, for one reader; raises how the request failed."""
        self._taken = True
        while True:
            while self._events:
                yield self._events.popleft()
            if self._ended:
                break
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Frees its places before the next step; nothing after the end."""
        if not self._ended:
            self._on_cancel(self)

"""An engine client that computes nothing: pixels follow from the sample alone, so a test can predict them.

It stands in where a test needs to hold the engine, to make it fail, or to count what reaches it. Where the
pictures matter, tests use the real engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np

from service.diffusion.schedule import NoiseSchedule
from service.engine.client import Fatality, SampleFinished, SamplePreview
from service.engine.request import ModelStatus, Sample, SampleResult, SizeTime
from service.models.classes import make_classes
from service.models.info import ModelInfo


def model_info(
    name: str = "avatars",
    *,
    classes: Sequence[str] | None = ("cat", "Big Dog", "owl"),
    channels: int = 3,
    size: int = 8,
) -> ModelInfo:
    """A model of `size` pixels that exists only on paper."""
    return ModelInfo(
        name=name,
        path=Path("/nowhere"),
        revision="sha256:" + hashlib.sha256(name.encode()).hexdigest(),
        image_size=size,
        channels=channels,
        num_classes=None if classes is None else len(classes),
        classes=() if classes is None else make_classes(classes),
        schedule=NoiseSchedule(),
        license="CC0-1.0",
    )


def pixels_of(sample: Sample, info: ModelInfo) -> bytes:
    """What the engine "makes": noise seeded by everything that may decide a picture, and by nothing else."""
    key = repr((sample.model, sample.seed, sample.class_label, sample.sigmas, sample.latents)).encode()
    generator = np.random.default_rng(list(hashlib.sha256(key).digest()))
    values = generator.integers(0, 256, (info.image_size, info.image_size, info.channels), dtype=np.uint8)
    if sample.pixels == "uint8":
        return values.tobytes()
    return (values.astype("<f4") / 255).tobytes()


class CountingSubmission:
    """One accepted request."""

    position = 0

    def __init__(self, engine: CountingEngine, samples: Sequence[Sample]) -> None:
        self.engine = engine
        self.samples = list(samples)
        self.finished = False
        self.cancelled = False

    @property
    def fingerprint(self) -> str:
        """The engine's at present."""
        return self.engine.fingerprint or ""

    async def results(self) -> list[SampleResult]:
        """The pictures, once the engine's gate is open; or the engine's error."""
        started = time.monotonic()
        await self.engine.gate.wait()
        if self.engine.error is not None:
            raise self.engine.error
        self.finished = True
        return [
            SampleResult(pixels_of(sample, self.engine.infos[sample.model]), started, time.monotonic())
            for sample in self.samples
        ]

    async def events(self) -> AsyncIterator[SampleFinished | SamplePreview]:
        """The pictures one by one."""
        for index, result in enumerate(await self.results()):
            yield SampleFinished(index, result)

    def cancel(self) -> None:
        """Notes that nobody waits, unless it is over."""
        self.cancelled = self.cancelled or not self.finished


class CountingEngine:
    """Keeps every submission; answers when `gate` is open, with `error` if there is one."""

    def __init__(self, *infos: ModelInfo) -> None:
        self.infos = {info.name: info for info in infos}
        self.submissions: list[CountingSubmission] = []
        self._came = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.refusal: Exception | None = None
        self.fingerprint: str | None = "numerics-1"

    @property
    def samples(self) -> list[Sample]:
        """Every sample that was ever submitted."""
        return [sample for submission in self.submissions for sample in submission.samples]

    async def submitted(self, count: int) -> None:
        """Returns when so many requests have come."""
        async with asyncio.timeout(10):
            while len(self.submissions) < count:
                self._came.clear()
                await self._came.wait()

    def submit(self, samples: Sequence[Sample]) -> CountingSubmission:
        """Accepts, or raises `refusal`."""
        if self.refusal is not None:
            raise self.refusal
        self.submissions.append(CountingSubmission(self, samples))
        self._came.set()
        return self.submissions[-1]

    def status(self, model: str) -> ModelStatus | None:
        """The fingerprint, if there is one yet."""
        if self.fingerprint is None:
            return None
        return ModelStatus(model, self.fingerprint, "cpu", "float32", (SizeTime(4, 0.02), SizeTime(8, 0.03)))

    @property
    def not_ready_reason(self) -> str | None:
        """Ready as soon as there is a fingerprint."""
        return None if self.fingerprint else "The model is loading."

    @property
    def fatal(self) -> asyncio.Future[Fatality]:
        """Never resolved."""
        return asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to end."""

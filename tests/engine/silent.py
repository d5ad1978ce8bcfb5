"""A pool whose engine says what the test says."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from service.engine.admission import Limits
from service.engine.job import Job
from service.engine.links import OnLost, OnMessage
from service.engine.pool import EnginePool
from service.engine.protocol import EngineConfig, Finished, Ready, StepEnded, StepStarted, ToEngine
from service.engine.request import ModelStatus, Sample, SampleResult, SizeTime
from service.metrics import EngineMetrics, Metrics
from service.models.places import load_infos


class SilentLink:
    """An engine that says what the test says."""

    killed = False

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.heard: list[ToEngine] = []
        self.failures: list[OSError] = []  # of the next attempts to start it

    async def connect(self, on_message: OnMessage, on_lost: OnLost) -> SilentLink:
        """Itself, after the failures."""
        if self.failures:
            raise self.failures.pop()
        self.say, self.kill, self.lost = on_message, on_lost, on_lost
        self.connected.set()
        return self

    def send(self, message: ToEngine) -> None:
        """Nobody hears it but the test."""
        self.heard.append(message)

    async def gone(self) -> None:
        """At once."""


class Stand:
    """A pool with a silent engine that is ready."""

    def __init__(self) -> None:
        self.info = next(iter(load_infos("bundled").values()))
        self.link, self.metrics = SilentLink(), Metrics()
        config = EngineConfig("cpu", "float32", 1, 8, 1.0, True, str(Path("/nowhere")))
        limits = Limits(request_timeout=1e6, max_queue_time=1e6, engine_restarts=3)
        self.pool = EnginePool([self.info], [config], self.link.connect, limits, EngineMetrics(self.metrics))

    async def start(self) -> None:
        """Until work is taken."""
        await self.pool.start()
        await self.link.connected.wait()
        sizes = (SizeTime(1, 0.01), SizeTime(8, 0.05))
        self.link.say(Ready((ModelStatus(self.info.name, "f", "cpu", "float32", sizes),)))

    def submit(self, count: int = 1, *, latents: bytes | None = None) -> Job:
        """A request for so many images, one by default."""
        return self.pool.submit(
            [
                Sample(
                    id=0,
                    request=0,
                    client="a",
                    model=self.info.name,
                    seed=1,
                    class_label=0,
                    sigmas=(1.0, 0.5),
                    latents=latents,
                    deadline=time.monotonic() + 1e5,
                )
                for _ in range(count)
            ]
        )

    def step(self, jobs: list[Job], *, last: bool) -> None:
        """One step of these requests."""
        ids = tuple(sample for job in jobs for sample in job.samples)
        self.link.say(StepStarted(self.info.name, ids, 0.05))
        self.link.say(StepEnded(self.info.name, ids, 8, 0.05, 8))
        for sample in ids if last else ():
            self.link.say(Finished(sample, SampleResult(b"", 0.0, 1.0)))

    def shown(self) -> tuple[float, float, float]:
        """Running requests, waiting requests, waiting images."""
        metrics = self.metrics
        gauges = (metrics.num_requests_running, metrics.num_requests_waiting, metrics.num_images_waiting)
        return tuple(gauge._value.get() for gauge in gauges)

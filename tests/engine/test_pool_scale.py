"""Thousands of waiting requests cost the event loop no more at each step than a few do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from service.engine.admission import Limits
from service.engine.job import Job
from service.engine.links import OnLost, OnMessage
from service.engine.pool import EnginePool
from service.engine.protocol import EngineConfig, Finished, Ready, StepEnded, StepStarted, ToEngine
from service.engine.request import ModelStatus, Sample, SampleResult, SizeTime
from service.metrics import EngineMetrics, Metrics
from service.models.places import load_infos

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """asyncio, as the server's own loop."""
    return "asyncio"


class SilentLink:
    """An engine that says what the test says."""

    killed = False

    def __init__(self) -> None:
        self.connected = asyncio.Event()

    async def connect(self, on_message: OnMessage, on_lost: OnLost) -> SilentLink:
        """Itself."""
        self.say, self.kill = on_message, on_lost
        self.connected.set()
        return self

    def send(self, message: ToEngine) -> None:
        """Nobody hears it."""

    async def gone(self) -> None:
        """At once."""


class Stand:
    """A pool with a silent engine that is ready."""

    def __init__(self) -> None:
        self.info = next(iter(load_infos("bundled").values()))
        self.link, self.metrics = SilentLink(), Metrics()
        config = EngineConfig("cpu", "float32", 1, 8, 1.0, True, str(Path("/nowhere")))
        limits = Limits(request_timeout=1e6, max_queue_time=1e6)
        self.pool = EnginePool([self.info], [config], self.link.connect, limits, EngineMetrics(self.metrics))

    async def start(self) -> None:
        """Until work is taken."""
        await self.pool.start()
        await self.link.connected.wait()
        sizes = (SizeTime(1, 0.01), SizeTime(8, 0.05))
        self.link.say(Ready((ModelStatus(self.info.name, "f", "cpu", "float32", sizes),)))

    def submit(self) -> Job:
        """A request for one image."""
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
                    deadline=time.monotonic() + 1e5,
                )
            ]
        )

    def step(self, jobs: list[Job], *, last: bool) -> None:
        """One step of these requests."""
        ids = tuple(sample for job in jobs for sample in job.samples)
        self.link.say(StepStarted(self.info.name, ids, 0.05))
        self.link.say(StepEnded(self.info.name, ids, 8, 0.05))
        for sample in ids if last else ():
            self.link.say(Finished(sample, SampleResult(b"", 0.0, 1.0)))

    def shown(self) -> tuple[float, float, float]:
        """Running requests, waiting requests, waiting images."""
        metrics = self.metrics
        gauges = (metrics.num_requests_running, metrics.num_requests_waiting, metrics.num_images_waiting)
        return tuple(gauge._value.get() for gauge in gauges)


async def seconds_with(waiting: int) -> tuple[float, float]:
    """Least processor time of a submission, and of a step that ends 8 requests, beside so many others."""
    stand = Stand()
    await stand.start()
    jobs = [stand.submit() for _ in range(waiting)]
    submitting, stepping = 9e9, 9e9
    for _ in range(10):
        began = time.process_time()
        served = [stand.submit() for _ in range(8)]
        middle = time.process_time()
        stand.step(served, last=False)
        stand.step(served, last=True)
        submitting, stepping = min(submitting, middle - began), min(stepping, time.process_time() - middle)
        assert all(job.ended for job in served)
    assert stand.shown() == (0, waiting, waiting)
    for job in jobs:
        job.cancel()
    assert stand.shown() == (0, 0, 0)
    await stand.pool.close()
    return submitting, stepping


async def test_the_cost_of_a_submission_and_of_a_step_does_not_grow_with_what_waits() -> None:
    few, many = await seconds_with(20), await seconds_with(2000)
    assert many[0] < 10 * few[0]
    assert many[1] < 10 * few[1]


async def test_the_position_is_the_image_steps_ahead() -> None:
    stand = Stand()
    await stand.start()
    first, second = stand.submit(), stand.submit()
    assert (first.position, second.position) == (0, 2)
    stand.step([first], last=False)
    assert stand.submit().position == 3
    assert stand.shown() == (1, 2, 2)
    await stand.pool.close()

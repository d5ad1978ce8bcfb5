"""What becomes of requests when engines are lost, replaced, or of other numerics."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from service.engine.admission import Limits
from service.engine.client import SampleFinished
from service.engine.job import Job
from service.engine.pool import EnginePool
from service.engine.protocol import EngineConfig, Finished, Ready, StepStarted, Submit
from service.engine.request import ModelStatus, Sample, SampleResult, SizeTime
from service.engine.supervisor import Supervisor
from service.errors import DeadlineExceeded, Draining, EngineLost, InferenceFailed, Overloaded
from service.metrics import EngineMetrics, Metrics
from tests.engine.silent import SilentLink, Stand

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


SIZES = (SizeTime(1, 0.01), SizeTime(8, 0.05))


def ready(stand: Stand, fingerprint: str = "f") -> Ready:
    return Ready((ModelStatus(stand.info.name, fingerprint, "cpu", "float32", SIZES),))


async def replaced(stand: Stand, fingerprint: str = "f") -> None:
    """The engine dies, and the next one is ready."""
    stand.link.connected.clear()
    stand.link.lost()
    await asyncio.wait_for(stand.link.connected.wait(), 10)
    stand.link.say(ready(stand, fingerprint))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "_backoff", lambda self: 0.0)


def begin(stand: Stand, *jobs: Job) -> None:
    stand.link.say(StepStarted(stand.info.name, tuple(i for job in jobs for i in job.samples), 0.05))


async def test_a_request_is_failed_only_when_an_engine_died_that_ran_it_apart(at_once: None) -> None:
    stand = Stand()
    await stand.start()
    job = stand.submit()
    begin(stand, job)
    await replaced(stand)
    assert not job.ended
    begin(stand, job)
    await replaced(stand)
    with pytest.raises(EngineLost):
        await job.results()
    await stand.pool.close()


async def test_an_engine_killed_from_outside_is_mere_bad_luck_twice(at_once: None) -> None:
    stand = Stand()
    stand.link.killed = True
    await stand.start()
    job = stand.submit()
    ended = []
    for _ in range(3):
        begin(stand, job)
        await replaced(stand)
        ended.append(job.ended)
    assert ended == [False] * 3
    await stand.pool.close()


async def test_who_was_in_the_step_before_a_loss_is_no_suspect_of_the_next_one(at_once: None) -> None:
    stand = Stand()
    await stand.start()
    guilty, bystander = stand.submit(), stand.submit()
    begin(stand, guilty, bystander)
    await replaced(stand)
    begin(stand, guilty)
    await replaced(stand)
    assert guilty.ended
    assert not bystander.ended
    await stand.pool.close()


async def test_an_engine_with_other_numerics_makes_the_whole_request_anew(at_once: None) -> None:
    """Bits of two fingerprints are never mixed in one answer, whoever reads it as a stream included."""
    stand = Stand()
    await stand.start()
    job = stand.submit(2)
    first, second = job.samples
    stand.step([job], last=False)
    stand.link.say(Finished(first, SampleResult(b"old", 0.0, 1.0)))
    stand.link.heard.clear()
    await replaced(stand, "g")
    assert [i.id for m in stand.link.heard if isinstance(m, Submit) for i in m.samples] == [first, second]
    assert job.fingerprint == "g"
    for sample in (first, second):
        stand.link.say(Finished(sample, SampleResult(b"new", 0.0, 1.0)))
    events = [event async for event in job.events()]
    assert [event.result.pixels for event in events if isinstance(event, SampleFinished)] == [b"new"] * 2
    await stand.pool.close()


async def test_other_numerics_in_the_middle_of_an_answer_that_is_read_end_it(at_once: None) -> None:
    stand = Stand()
    await stand.start()
    job = stand.submit(2)
    stand.step([job], last=False)
    stand.link.say(Finished(next(iter(job.samples)), SampleResult(b"old", 0.0, 1.0)))
    events = job.events()
    await anext(events)
    await replaced(stand, "g")
    with pytest.raises(InferenceFailed):
        await anext(events)
    await stand.pool.close()


async def test_the_timer_of_a_deadline_goes_with_its_request() -> None:
    stand = Stand()
    await stand.start()
    job = stand.submit()
    timer = stand.pool._timers[job.id]
    job.cancel()
    assert timer.cancelled()
    await stand.pool.close()


async def test_a_deadline_holds_though_the_engine_says_nothing() -> None:
    stand = Stand()
    await stand.start()
    sample = Sample(id=0, request=0, client="a", model=stand.info.name, seed=1, class_label=0, sigmas=(1.0,),
                    deadline=time.monotonic() + 0.2)  # fmt: skip
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(stand.pool.submit([sample]).results(), 3)
    await stand.pool.close()


def two_engines(stand: Stand) -> tuple[list[SilentLink], EnginePool]:
    """A pool of two, and who stands for each."""
    links = [SilentLink(), SilentLink()]
    left = iter(links)
    config = EngineConfig("cpu", "float32", 1, 8, 1.0, True, str(Path("/nowhere")))
    pool = EnginePool([stand.info], [config] * 2, lambda *to: next(left).connect(*to), Limits(),
                      EngineMetrics(Metrics()))  # fmt: skip
    return links, pool


async def test_devices_that_give_different_bits_are_not_served() -> None:
    stand = Stand()
    links, pool = two_engines(stand)
    await pool.start()
    for link, fingerprint in zip(links, "fg", strict=True):
        await link.connected.wait()
        link.say(ready(stand, fingerprint))
    assert pool.fatal.done()
    assert "different bits" in pool.fatal.result().reason
    await pool.close()


async def test_all_engines_that_are_ready_count_in_the_admission() -> None:
    stand = Stand()
    links, pool = two_engines(stand)
    await pool.start()
    for link in links:
        await link.connected.wait()
        link.say(ready(stand))
    assert pool._admission.engines == 2
    await pool.close()


async def test_what_is_unanswered_when_it_closes_is_told_so() -> None:
    stand = Stand()
    await stand.start()
    job = stand.submit()
    await stand.pool.close()
    with pytest.raises(Draining):
        await asyncio.wait_for(job.results(), 3)


async def test_while_an_engine_is_replaced_a_deadline_before_its_return_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Supervisor, "_backoff", lambda self: 3600.0)
    stand = Stand()
    await stand.start()
    stand.pool._engines[0].load_seconds = 50.0
    stand.link.lost()
    sample = Sample(id=0, request=0, client="a", model=stand.info.name, seed=1, class_label=0, sigmas=(1.0,),
                    deadline=time.monotonic() + 20)  # fmt: skip
    with pytest.raises(Overloaded) as error:
        stand.pool.submit([sample])
    assert error.value.retry_after == pytest.approx(30, abs=1)
    await stand.pool.close()


async def test_what_an_engine_says_after_it_was_given_up_is_not_heard() -> None:
    stand = Stand()
    await stand.start()
    stand.link.lost()
    stand.link.say(ready(stand))
    assert stand.pool.not_ready_reason == "the engine is being replaced"
    await stand.pool.close()

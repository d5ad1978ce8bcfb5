"""An engine that cannot be started is one that was lost: it is tried again, within the same budget."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import sys
import warnings

import pytest

from service.engine import supervisor
from service.engine.links import ProcessLink
from service.engine.pool import SUBMITTED
from service.engine.protocol import StepEnded, StepStarted, Submit
from tests.engine.silent import Stand

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """asyncio, as the server's own loop."""
    return "asyncio"


def no_room() -> OSError:
    """What fork says on a machine that is short of processes."""
    return OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


async def test_a_machine_that_is_short_of_room_for_a_moment_gets_its_engine_later() -> None:
    stand = Stand()
    stand.link.failures = [no_room()]
    await asyncio.wait_for(stand.start(), 20)
    assert stand.pool.not_ready_reason is None
    job = stand.submit()
    stand.step([job], last=False)
    stand.step([job], last=True)
    assert len(await job.results()) == 1
    assert not stand.pool.fatal.done()
    await stand.pool.close()


async def test_a_machine_that_never_has_room_spends_the_restart_budget() -> None:
    stand = Stand()
    stand.link.failures = [no_room() for _ in range(4)]
    await stand.pool.start()
    fatality = await asyncio.wait_for(stand.pool.fatal, 20)
    assert fatality.budget_spent
    await stand.pool.close()


async def test_an_engine_that_cannot_be_spawned_leaves_no_socket_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(FileNotFoundError):
            await ProcessLink.connect(lambda message: None, lambda: None)
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


async def test_who_is_in_a_step_that_is_not_over_when_the_engine_dies_is_a_suspect() -> None:
    """A GPU is asked for a step before the last one is over, so there may be two of them."""
    stand = Stand()
    await asyncio.wait_for(stand.start(), 20)
    jobs = [stand.submit() for _ in range(4)]
    steps = [StepStarted(stand.info.name, tuple(job.samples), 0.05) for job in jobs]
    for step in steps[:2]:
        stand.link.say(step)
    stand.link.say(StepEnded(stand.info.name, steps[0].samples, 8, 0.05, 8))
    stand.link.say(steps[2])
    stand.link.connected.clear()
    stand.link.lost()
    await asyncio.wait_for(stand.link.connected.wait(), 20)
    assert [job.isolated for job in jobs] == [False, True, True, False]
    await stand.pool.close()


async def test_a_step_that_hangs_is_seen_though_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU one core may hang while the others work."""
    monkeypatch.setattr(supervisor, "TICK", 0.02)
    monkeypatch.setattr(supervisor, "PROGRESS", 0.6)
    stand = Stand()
    await asyncio.wait_for(stand.start(), 20)
    stuck, other = stand.submit(), stand.submit()
    stand.link.connected.clear()
    stand.link.say(StepStarted(stand.info.name, tuple(stuck.samples), 0.05))
    seen = 0
    while not stand.link.connected.is_set():
        assert seen < 200
        stand.link.say(StepStarted(stand.info.name, tuple(other.samples), 0.05))
        await asyncio.sleep(0.05)
        if not stand.link.connected.is_set():
            stand.link.say(StepEnded(stand.info.name, tuple(other.samples), 8, 0.05, 8))
        seen += 1
    assert seen > 5
    assert stuck.isolated
    assert not stand.pool.fatal.done()
    await stand.pool.close()


async def test_a_large_request_goes_to_the_engine_in_parts() -> None:
    """Each sample may carry pictures of its own, and a message has a longest length."""
    stand = Stand()
    await asyncio.wait_for(stand.start(), 20)
    job = stand.submit(2 * SUBMITTED + 3, latents=b"")
    parts = [message.samples for message in stand.link.heard if isinstance(message, Submit)]
    assert [len(part) for part in parts] == [SUBMITTED, SUBMITTED, 3]
    assert [sample.id for part in parts for sample in part] == list(job.samples)
    stand.submit(2 * SUBMITTED + 3)  # nothing but numbers: the engine, which begins with the first message, has all
    assert isinstance(stand.link.heard[-1], Submit)
    assert len(stand.link.heard[-1].samples) == 2 * SUBMITTED + 3
    await stand.pool.close()


async def test_the_end_does_not_wait_for_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor.Supervisor, "_backoff", lambda self: 3600.0)
    stand = Stand()
    stand.link.failures = [no_room()]
    await stand.pool.start()
    while stand.link.failures:
        await asyncio.sleep(0)
    await asyncio.wait_for(stand.pool.close(), 20)

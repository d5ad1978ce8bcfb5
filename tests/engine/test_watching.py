"""How an engine is watched, given up and restarted; what comes over its socket."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import pytest

from service.engine import supervisor
from service.engine.inbox import Inbox
from service.engine.links import OnLost, OnMessage, ThreadLink, _FrameReader
from service.engine.protocol import FromEngine, Ping, Pong, StepStarted, frame
from service.engine.supervisor import Executing, Supervisor
from tests.engine.silent import SilentLink, Stand

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "_backoff", lambda self: 0.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that looks often and is impatient."""
    monkeypatch.setattr(supervisor, "TICK", 0.01)
    monkeypatch.setattr(supervisor, "PING_EVERY", 1)
    monkeypatch.setattr(supervisor, "PROGRESS", 0.2)


async def test_an_engine_that_is_silent_while_it_loads_has_time_each_time(
    quick: None, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SILENCE", 0.05)
    monkeypatch.setattr(supervisor, "LOADING_SILENCE", 0.3)
    stand = Stand()
    await stand.pool.start()
    for _ in range(2):
        await stand.link.connected.wait()
        began = time.monotonic()
        stand.link.connected.clear()
        await asyncio.wait_for(stand.link.connected.wait(), 5)
        assert time.monotonic() - began > 0.25
    await stand.pool.close()


async def test_answers_to_pings_are_a_sign_of_life_and_an_idle_engine_is_left_alone(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SILENCE", 0.3)
    stand = Stand()
    await stand.start()
    stand.link.connected.clear()
    for _ in range(40):
        stand.link.say(Pong())
        await asyncio.sleep(0.02)
    assert not stand.link.connected.is_set()
    await stand.pool.close()


async def test_an_engine_that_takes_work_and_begins_no_step_is_replaced(quick: None) -> None:
    stand = Stand()
    await stand.start()
    stand.link.connected.clear()
    job = stand.submit()
    end = time.monotonic() + 5
    while not stand.link.connected.is_set():
        assert time.monotonic() < end
        stand.link.say(Pong())
        await asyncio.sleep(0.02)
    assert not job.ended
    await stand.pool.close()


def test_a_step_that_is_known_to_take_long_may() -> None:
    assert not Executing(StepStarted("m", (1,), 10.0), 99.0).hangs
    assert Executing(StepStarted("m", (1,), 10.0), 101.0).hangs
    assert not Executing(StepStarted("m", (1,), 0.01), 4.9).hangs


async def test_as_many_restarts_as_the_budget_says_are_made(at_once: None) -> None:
    stand = Stand()
    stand.link.failures = [OSError() for _ in range(3)]
    await asyncio.wait_for(stand.start(), 10)
    assert stand.pool.not_ready_reason is None
    await stand.pool.close()


async def test_restarts_of_long_ago_count_no_more_and_the_first_of_late_is_made_at_once() -> None:
    engine = Stand().pool._engines[0]
    now = time.monotonic()
    engine._restarts = deque([now - supervisor.RESTART_WINDOW - 1] * 3)
    assert engine._may_restart()
    assert engine._backoff() == 0.0
    assert engine._may_restart()
    assert engine._backoff() == 0.5
    engine._restarts = deque([now] * 50)
    assert engine._backoff() == 8.0


async def test_an_engine_that_is_connected_while_it_closes_is_ended() -> None:
    stand, go = Stand(), asyncio.Event()
    connect = stand.link.connect

    async def slowly(on_message: OnMessage, on_lost: OnLost) -> SilentLink:
        await go.wait()
        return await connect(on_message, on_lost)

    stand.pool._engines[0]._connect = slowly
    await stand.pool.start()
    await asyncio.sleep(0)
    closing = asyncio.create_task(stand.pool.close())
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait_for(closing, 3)


def test_a_message_is_handed_over_as_soon_as_it_is_whole() -> None:
    heard: list[FromEngine] = []
    reader = _FrameReader(heard.append, lambda: None)
    whole = frame(Pong()) + frame(StepStarted("m", (1, 2), 0.5))
    for byte in whole[:-1]:
        reader.data_received(bytes([byte]))
    assert heard == [Pong()]
    reader.data_received(whole[-1:])
    assert heard == [Pong(), StepStarted("m", (1, 2), 0.5)]


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{}"])
def test_what_is_no_message_ends_the_connection(data: bytes) -> None:
    class Transport(asyncio.BaseTransport):
        closed = False

        def close(self) -> None:
            self.closed = True

    heard: list[FromEngine] = []
    reader, transport = _FrameReader(heard.append, lambda: None), Transport()
    reader.connection_made(transport)
    reader.data_received(data)
    assert transport.closed
    assert heard == []


async def test_a_thread_that_was_never_started_is_gone_when_it_is_killed() -> None:
    lost = []
    link = await ThreadLink.connect(lambda message: None, lambda: lost.append(True))
    link.kill()
    await asyncio.wait_for(link.gone(), 3)
    assert lost == [True]


def test_the_bell_of_an_inbox_rings_for_what_comes_and_for_the_end() -> None:
    inbox = Inbox()
    inbox.put(Ping())
    assert inbox.bell.is_set()
    inbox.bell.clear()
    inbox.close()
    assert inbox.bell.is_set()

"""The processes that read pictures."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from service.api.picture_input import Order, Picture
from service.api.picture_input_pool import PicturePool
from service.errors import Draining, Unavailable
from tests.hostile_pictures import colourful, encoded

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_signal_for_the_whole_group_leaves_workers_to_their_pool() -> None:
    pool = PicturePool(1)
    order = Order(encoded(colourful(), "PNG"), "picture", "crop", 8, 3)
    await pool.read(order)
    before = pool.pids
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(before[0], number)
    await asyncio.sleep(0.2)
    await pool.read(order)
    assert pool.pids == before
    await pool.close()


async def killing(pool: PicturePool, times: int) -> None:
    """Kills so many workers of a pool as soon as they live."""
    seen: set[int] = set()
    while len(seen) < times:
        for pid in set(pool.pids) - seen:
            os.kill(pid, signal.SIGKILL)
            seen.add(pid)
        await asyncio.sleep(0)


async def test_a_picture_is_not_blamed_for_a_process_that_somebody_killed() -> None:
    pool = PicturePool(1)
    order = Order(encoded(colourful(), "PNG"), "picture", "crop", 8, 3)
    _, answer = await asyncio.gather(killing(pool, 1), pool.read(order))
    assert isinstance(answer, Picture)
    await pool.close()


async def test_processes_that_are_always_killed_are_a_matter_of_the_machine() -> None:
    pool = PicturePool(1)
    order = Order(encoded(colourful(), "PNG"), "picture", "crop", 8, 3)
    killer = asyncio.create_task(killing(pool, 2))
    with pytest.raises(Unavailable):
        await pool.read(order)
    await killer
    await pool.close()


async def test_at_the_end_pictures_under_way_are_told_so() -> None:
    pool = PicturePool(1)
    order = Order(encoded(colourful(), "PNG"), "picture", "crop", 8, 3)
    reading = asyncio.create_task(pool.read(order))
    while not pool.pids:
        await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(Draining):
        await reading
    assert pool.pids == []

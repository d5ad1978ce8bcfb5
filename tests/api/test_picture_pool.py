"""The processes that read pictures."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from service.api.picture_input import Order
from service.api.picture_input_pool import PicturePool
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

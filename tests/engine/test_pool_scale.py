"""Thousands of waiting requests cost the event loop no more at each step than a few do."""

from __future__ import annotations

import time

import pytest

from tests.engine.silent import Stand

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """asyncio, as the server's own loop."""
    return "asyncio"


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

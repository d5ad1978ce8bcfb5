"""Single flight and the cache bounded in bytes."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.cache import ByteCache, CachedImage, SingleFlight
from service.errors import DeadlineExceeded, Overloaded

pytestmark = pytest.mark.anyio


class Job:
    """Work that ends when it is told to."""

    def __init__(self, deadline: float | None = None) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.deadline = deadline
        self.cancelled = False

    async def result(self) -> str:
        if self.deadline is None:
            return await self.ended
        try:
            return await asyncio.wait_for(asyncio.shield(self.ended), self.deadline - time.monotonic())
        except TimeoutError:
            raise DeadlineExceeded("late") from None

    def cancel(self) -> None:
        self.cancelled = self.ended.cancelled() or not self.ended.done()


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


class Jobs:
    """Starts jobs and keeps them."""

    def __init__(self) -> None:
        self.all: list[Job] = []

    def start(self) -> Job:
        self.all.append(Job())
        return self.all[-1]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_concurrent_callers_share_one_run() -> None:
    """Ten callers, one run, one result; the next caller starts anew."""
    flights, jobs = SingleFlight[str](), Jobs()
    callers = [asyncio.ensure_future(flights.run("key", jobs.start, soon())) for _ in range(10)]
    await settled()
    assert len(jobs.all) == 1
    assert "key" in flights
    jobs.all[0].ended.set_result("done")
    assert await asyncio.gather(*callers) == ["done"] * 10
    assert "key" not in flights
    again = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await settled()
    assert len(jobs.all) == 2
    jobs.all[1].ended.set_result("again")
    assert await again == "again"


async def test_other_keys_run_apart() -> None:
    """Each key has its own run."""
    flights, jobs = SingleFlight[str](), Jobs()
    callers = [asyncio.ensure_future(flights.run(key, jobs.start, soon())) for key in "abc"]
    await settled()
    for number, job in enumerate(jobs.all):
        job.ended.set_result(str(number))
    assert await asyncio.gather(*callers) == ["0", "1", "2"]


async def test_the_starter_may_leave() -> None:
    """The run goes on for those who are left when its starter goes."""
    flights, jobs = SingleFlight[str](), Jobs()
    starter = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    other = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await settled()
    starter.cancel()
    await settled()
    assert not jobs.all[0].cancelled
    jobs.all[0].ended.set_result("done")
    assert await other == "done"
    assert len(jobs.all) == 1


async def test_the_last_to_leave_cancels() -> None:
    """Nobody waits: the run is cancelled, and who comes next gets a new one, never the cancelled one."""
    flights, jobs = SingleFlight[str](), Jobs()
    callers = [asyncio.ensure_future(flights.run("key", jobs.start, soon())) for _ in range(3)]
    await settled()
    for caller in callers:
        caller.cancel()
    await settled()
    assert jobs.all[0].cancelled
    assert "key" not in flights
    late = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await settled()
    jobs.all[1].ended.set_result("done")
    assert await late == "done"


async def test_cancelled_before_its_first_step() -> None:
    """Work whose task never came to run is cancelled too."""
    flights, jobs = SingleFlight[str](), Jobs()
    with pytest.raises(DeadlineExceeded):
        await flights.run("key", jobs.start, time.monotonic() - 1)
    await settled()
    assert jobs.all[0].cancelled


async def test_each_waiter_has_its_own_deadline() -> None:
    """An impatient waiter leaves alone."""
    flights, jobs = SingleFlight[str](), Jobs()
    patient = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await settled()
    with pytest.raises(DeadlineExceeded):
        await flights.run("key", jobs.start, soon(0.05))
    assert not jobs.all[0].cancelled
    jobs.all[0].ended.set_result("done")
    assert await patient == "done"


async def test_a_late_joiner_outlives_the_starters_deadline() -> None:
    """When the run ends by its starter's deadline, who has time left starts another."""
    flights = SingleFlight[str]()
    first = Job(soon(0.1))
    second: list[Job] = []

    def start_second() -> Job:
        second.append(Job())
        second[-1].ended.set_result("done")
        return second[-1]

    starter = asyncio.ensure_future(flights.run("key", lambda: first, first.deadline or 0))
    await settled()
    joiners = [asyncio.ensure_future(flights.run("key", start_second, soon())) for _ in range(3)]
    with pytest.raises(DeadlineExceeded):
        await starter
    assert await asyncio.gather(*joiners) == ["done"] * 3
    assert len(second) == 1


async def test_errors_reach_every_waiter_and_are_not_kept() -> None:
    """A failed run fails those who wait, and nobody after them."""
    flights, jobs = SingleFlight[str](), Jobs()
    callers = [asyncio.ensure_future(flights.run("key", jobs.start, soon())) for _ in range(3)]
    await settled()
    jobs.all[0].ended.set_exception(RuntimeError("broken"))
    assert [RuntimeError] * 3 == [type(e) for e in await asyncio.gather(*callers, return_exceptions=True)]
    after = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await settled()
    jobs.all[1].ended.set_result("done")
    assert await after == "done"


async def test_a_refused_start_is_the_starters_alone() -> None:
    """Work that is refused at once leaves nothing behind that others could join."""
    flights, jobs = SingleFlight[str](), Jobs()

    def refuse() -> Job:
        raise Overloaded("full", retry_after=3)

    with pytest.raises(Overloaded):
        await flights.run("key", refuse, soon())
    assert "key" not in flights
    caller = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await settled()
    jobs.all[0].ended.set_result("done")
    assert await caller == "done"


@given(
    st.integers(0, 5000),
    st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 1500)), max_size=60),
)
def test_the_cache_is_bounded_and_keeps_the_latest(capacity: int, uses: list[tuple[bool, int, int]]) -> None:
    """Never more than its capacity; what fits and was put last is there; what it gives is what was put."""
    cache, stored = ByteCache(capacity), {}
    for put, name, size in uses:
        etag = f'"{name}"'
        if put:
            image = CachedImage(etag, bytes(size))
            known = cache.get(etag)
            cache.put(image)
            stored[etag] = known or image
            if size + 512 <= capacity:
                assert cache.get(etag) is not None
        found = cache.get(etag)
        assert found is None or found.body == stored[etag].body
        assert 0 <= cache.size <= capacity


def test_the_least_recently_used_goes_first() -> None:
    """A use counts, not only a store."""
    cache = ByteCache(3 * 1512)
    for name in "abc":
        cache.put(CachedImage(name, bytes(1000)))
    cache.get("a")
    cache.put(CachedImage("d", bytes(1000)))
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]


async def test_work_that_ends_late_takes_nothing_from_what_was_begun_since() -> None:
    flights, jobs = SingleFlight[str](), Jobs()

    class Lingering(Job):
        async def result(self) -> str:
            try:
                return await super().result()
            finally:
                await asyncio.sleep(0.01)

    first = asyncio.ensure_future(flights.run("key", Lingering, soon()))
    await settled()
    first.cancel()
    await settled()
    second = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await asyncio.sleep(0.05)
    third = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await settled()
    assert len(jobs.all) == 1
    jobs.all[0].ended.set_result("done")
    assert await asyncio.gather(second, third) == ["done"] * 2


async def test_the_starter_of_work_that_ends_in_its_deadline_does_not_start_it_again() -> None:
    flights, jobs = SingleFlight[str](), Jobs()
    starter = asyncio.ensure_future(flights.run("key", jobs.start, soon()))
    await settled()
    jobs.all[0].ended.set_exception(DeadlineExceeded("late"))
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(starter, 3)
    assert len(jobs.all) == 1

"""The engine client over real engine threads: admission, quotas, deadlines, cancellation, drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.engine.admission import Limits
from service.engine.client import SampleFinished, SamplePreview
from service.engine.job import Job
from service.engine.links import ThreadLink
from service.engine.pool import EnginePool
from service.engine.protocol import EngineConfig
from service.engine.request import Sample
from service.errors import Draining, NotReady, OutOfReach, Overloaded, QuotaExceeded
from service.metrics import EngineMetrics, Metrics
from service.models.info import ModelInfo
from service.models.places import load_infos
from tests.tiny import tiny_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """asyncio, as the server's own loop."""
    return "asyncio"


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    """A tiny class-conditional model."""
    folder = tiny_model(tmp_path_factory.mktemp("model") / "tiny", "plain")
    return next(iter(load_infos(str(folder)).values()))


class Pools:
    """Makes pools and closes them."""

    def __init__(self, info: ModelInfo, cache: Path) -> None:
        self.info = info
        self.metrics = Metrics()
        self._cache = cache
        self._pools: list[EnginePool] = []

    async def start(self, *, engines: int = 1, wait: bool = True, **limits: float) -> EnginePool:
        """A pool of engine threads, ready unless told not to wait."""
        config = EngineConfig("cpu", "float32", 1, 8, 1.0, True, str(self._cache))
        observer = EngineMetrics(self.metrics)
        chosen = Limits(**limits)  # type: ignore[arg-type]
        pool = EnginePool([self.info], [config] * engines, ThreadLink.connect, chosen, observer)
        self._pools.append(pool)
        await pool.start()
        while wait and self.metrics.engine_ready._value.get() < engines:
            await asyncio.sleep(0.01)
        return pool

    def samples(
        self,
        count: int = 1,
        *,
        steps: int = 1,
        seed: int = 0,
        timeout: float = 100,
        client: str = "a",
        previews: int = 0,
    ) -> list[Sample]:
        """Samples of one request."""
        schedule = self.info.schedule
        return [
            Sample(
                id=0,
                request=0,
                client=client,
                model=self.info.name,
                seed=seed + i,
                class_label=3,
                sigmas=schedule.sigmas(schedule.evenly_spaced(steps)),
                deadline=time.monotonic() + timeout,
                preview_every=previews,
            )
            for i in range(count)
        ]

    async def close(self) -> None:
        """Ends all pools."""
        for pool in self._pools:
            await pool.close()


@pytest.fixture
async def pools(info: ModelInfo, tmp_path: Path) -> AsyncIterator[Pools]:
    made = Pools(info, tmp_path)
    yield made
    await made.close()


async def test_it_refuses_until_the_engine_is_ready(pools: Pools) -> None:
    pool = await pools.start(wait=False)
    assert pool.not_ready_reason == "the model is loading"
    with pytest.raises(NotReady):
        pool.submit(pools.samples())


async def test_results_come_in_order_and_equal_those_of_single_requests(pools: Pools) -> None:
    pool = await pools.start()
    together = await pool.submit(pools.samples(5, steps=3)).results()
    alone = [(await pool.submit(pools.samples(seed=i, steps=3)).results())[0] for i in range(5)]
    assert [r.pixels for r in together] == [r.pixels for r in alone]
    assert len({r.pixels for r in together}) == 5


async def test_a_deadline_that_even_an_idle_engine_cannot_meet_is_told_with_what_it_needs(pools: Pools) -> None:
    pool = await pools.start()
    with pytest.raises(OutOfReach) as error:
        pool.submit(pools.samples(64, steps=40, timeout=0.05))
    assert error.value.seconds > 0.05


async def test_a_request_that_would_wait_too_long_is_refused_with_an_honest_retry_after(pools: Pools) -> None:
    """Refused at once; after the time it was told, an equal request is accepted."""
    pool = await pools.start(max_queue_time=0.3)
    accepted: list[Job] = []

    def flood() -> None:
        for i in range(500):
            accepted.append(pool.submit(pools.samples(64, steps=40, client=f"c{i}")))  # noqa: PERF401 - kept as they come

    with pytest.raises(Overloaded) as error:
        flood()
    assert accepted, "an idle service takes a request of any length"
    retry_after = error.value.retry_after
    assert retry_after is not None
    assert 0 < retry_after < 60
    for job in accepted[1:]:
        job.cancel()
    await asyncio.sleep(retry_after)
    pool.submit(pools.samples(1, client="late")).cancel()


async def test_a_small_request_is_accepted_beside_a_long_one(pools: Pools) -> None:
    """Fair sharing is counted: 64 x 40 steps ahead do not make one step wait."""
    pool = await pools.start(max_queue_time=0.5)
    bulk = pool.submit(pools.samples(64, steps=40))
    small = pool.submit(pools.samples(1))
    await small.results()
    assert not bulk.ended
    bulk.cancel()


async def test_the_quota_counts_outstanding_image_steps_of_one_client(pools: Pools) -> None:
    pool = await pools.start(max_client_image_steps=100)
    first = pool.submit(pools.samples(2, steps=40))
    with pytest.raises(QuotaExceeded) as error:
        pool.submit(pools.samples(2, steps=40))
    assert error.value.retry_after
    await pool.submit(pools.samples(1, client="b")).results()
    await first.results()
    await pool.submit(pools.samples(2, steps=40)).results()


async def test_a_request_over_the_whole_quota_is_not_told_to_come_back(pools: Pools) -> None:
    pool = await pools.start(max_client_image_steps=100)
    with pytest.raises(QuotaExceeded, match="needs 120 image-steps") as error:
        pool.submit(pools.samples(3, steps=40))
    assert error.value.retry_after is None


async def test_previews_come_before_their_image_and_never_for_the_last_step(pools: Pools) -> None:
    pool = await pools.start()
    events = [event async for event in pool.submit(pools.samples(2, steps=5, previews=2)).events()]
    previews = [(e.index, e.preview.step) for e in events if isinstance(e, SamplePreview)]
    assert sorted(previews) == [(0, 2), (0, 4), (1, 2), (1, 4)]
    assert [type(e) for e in events if e.index == 0] == [SamplePreview, SamplePreview, SampleFinished]


async def test_a_closed_pool_refuses(pools: Pools) -> None:
    pool = await pools.start()
    await pool.close()
    with pytest.raises(Draining):
        pool.submit(pools.samples())


async def test_two_engines_share_the_work(pools: Pools) -> None:
    """Requests go to the engine with the least to do; the bits are the same on both."""
    pool = await pools.start(engines=2)
    jobs = [pool.submit(pools.samples(4, steps=8, seed=7)) for _ in range(6)]
    outstanding = [engine.outstanding for engine in pool._engines]
    assert outstanding == [96, 96]
    results = [[r.pixels for r in await job.results()] for job in jobs]
    assert all(result == results[0] for result in results)
    assert [engine.outstanding for engine in pool._engines] == [0, 0]

"""Runs a workload against a server: a closed loop of clients that wait, or an open loop of arrivals that do not.

Both run in the calling process until the last answer is in; call them from a process other than the server's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from typing import Any, Final

import uvloop

from service.bench.answers import image_steps, read, stages
from service.bench.connection import Answer, Broken, Pool
from service.bench.cpu import cpu_of_tree
from service.bench.report import NOT_SENT, OK, Conditions, Record, Result, summarize
from service.bench.workloads import Call, Workload

__all__ = ["arrival_times", "run_closed", "run_open"]

PAUSE: Final = 0.1  # seconds that a client of a closed loop waits after a failure, so as not to spin on refusals


def run_closed(
    url: str,
    workload: Workload,
    clients: int,
    seconds: float,
    warm_up: float,
    *,
    deadline: float = 1.0,
    api_key: str | None = None,
    timeout: float = 60.0,
    server_pid: int | None = None,
) -> Result:
    """Saturates the server: each of `clients` sends its next request when its last one is answered.

    The window of `seconds` begins after `warm_up` seconds. A request without an answer after `timeout` seconds has
    failed. With `server_pid` the processor time of that process and its children is told too.
    """
    run = _Run(workload, seconds, warm_up, timeout, server_pid)

    def load() -> list[Coroutine[Any, Any, None]]:
        calls = workload.calls()
        return [run.client(calls, background=False) for _ in range(clients)]

    return run.result(url, api_key, load, clients=clients, rate=None, deadline=deadline)


def run_open(
    url: str,
    workload: Workload,
    rate: float,
    seconds: float,
    warm_up: float,
    deadline: float = 1.0,
    *,
    api_key: str | None = None,
    timeout: float = 60.0,
    max_outstanding: int = 1000,
    server_pid: int | None = None,
) -> Result:
    """Offers `rate` requests per second on average, as a Poisson process, whatever the server does.

    An arrival that finds `max_outstanding` requests without an answer is not sent and has failed.
    """
    run = _Run(workload, seconds, warm_up, timeout, server_pid)

    def load() -> list[Coroutine[Any, Any, None]]:
        return [run.arrivals(rate, max_outstanding)]

    return run.result(url, api_key, load, clients=None, rate=rate, deadline=deadline)


def arrival_times(rate: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due: a Poisson process of `rate` per second, without end."""
    rng = random.Random(f"arrivals/{seed}")  # noqa: S311
    return accumulate(rng.expovariate(rate) for _ in repeat(None))


@dataclass(slots=True)
class _Meter:
    """Processor seconds in the window."""

    generator: float = 0.0
    server: float | None = None


@dataclass
class _Run:
    """One run, from the first request of the warm-up to the last answer."""

    workload: Workload
    seconds: float
    warm_up: float
    timeout: float
    server_pid: int | None
    records: list[Record] = field(default_factory=list)
    meter: _Meter = field(default_factory=_Meter)

    def result(
        self,
        url: str,
        api_key: str | None,
        load: Callable[[], list[Coroutine[Any, Any, None]]],
        *,
        clients: int | None,
        rate: float | None,
        deadline: float,
    ) -> Result:
        """Runs to the end. Raises ValueError for a URL that is none."""
        self.pool = Pool(url, api_key)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main(load))
        conditions = Conditions(
            workload=self.workload.name,
            clients=clients,
            rate=rate,
            seconds=self.seconds,
            warm_up=self.warm_up,
            deadline=deadline,
            begin=self.begin,
            generator_cpu_seconds=self.meter.generator,
            server_cpu_seconds=self.meter.server,
        )
        return summarize(self.records, conditions)

    async def _main(self, load: Callable[[], list[Coroutine[Any, Any, None]]]) -> None:
        self.begin = time.monotonic() + self.warm_up
        self.end = self.begin + self.seconds
        background = self.workload.background
        try:
            async with asyncio.TaskGroup() as tasks:
                front = [tasks.create_task(each) for each in (self._measure(), *load())]
                behind = []
                if background is not None:
                    calls = background.calls()
                    behind = [tasks.create_task(self.client(calls, background=True)) for _ in range(background.clients)]
                await asyncio.gather(*front)
                for task in behind:
                    task.cancel()  # nobody waits for the bulk that is under way now
        finally:
            self.pool.close()

    async def client(self, calls: Iterator[Call], *, background: bool) -> None:
        """Sends one request after the other until the window ends."""
        while (now := time.monotonic()) < self.end:
            outcome = await self._request(next(calls), now, background=background)
            if outcome != OK:
                await asyncio.sleep(PAUSE)

    async def arrivals(self, rate: float, max_outstanding: int) -> None:
        """Sends requests when they are due until the window ends, and waits for their answers."""
        outstanding: set[asyncio.Task[str]] = set()
        began = time.monotonic()
        for call, after in zip(self.workload.calls(), arrival_times(rate, self.workload.source.seed), strict=False):
            due = began + after
            if due >= self.end:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(outstanding) >= max_outstanding:
                self.records.append(Record(call.kind, False, due, due, due, NOT_SENT))
                continue
            task = asyncio.create_task(self._request(call, due, background=False))
            outstanding.add(task)
            task.add_done_callback(outstanding.discard)
        await asyncio.gather(*outstanding)

    async def _request(self, call: Call, intended: float, *, background: bool) -> str:
        """Sends one request, notes what became of it, and returns the outcome."""
        sent = time.monotonic()
        record = Record(call.kind, background, intended, sent, sent, OK)
        try:
            async with asyncio.timeout(self.timeout):
                answer = await self.pool.request(call.method, call.path, call.body, call.headers)
        except TimeoutError:
            record.outcome = "timeout"
        except Broken:
            record.outcome = "connection"
        record.done = time.monotonic()
        if record.outcome == OK:
            self._look_at(answer, call, record)
        self.records.append(record)
        return record.outcome

    def _look_at(self, answer: Answer, call: Call, record: Record) -> None:
        if answer.status != call.status:
            record.outcome = str(answer.status)
            return
        if not call.images:
            return
        body = read(call, answer)
        if body is None:
            record.outcome = "bad answer"
        else:
            record.images, record.image_steps = call.images, image_steps(call, body)
            record.stages = stages(answer, body)

    async def _measure(self) -> None:
        await asyncio.sleep(self.begin - time.monotonic())
        own, server = time.process_time(), self._server_cpu()
        await asyncio.sleep(self.end - time.monotonic())
        self.meter.generator = time.process_time() - own
        after = self._server_cpu()
        if server is not None and after is not None:
            self.meter.server = after - server

    def _server_cpu(self) -> float | None:
        return None if self.server_pid is None else cpu_of_tree(self.server_pid)

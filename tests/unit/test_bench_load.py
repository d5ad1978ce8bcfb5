"""The closed and the open loop against small servers: what is sent when, and what is counted.

Machines that run tests are slow and busy, so these tests count and compare; none looks at milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import time
from itertools import islice, pairwise
from statistics import fmean, stdev

import pytest

from service.bench.load import arrival_times, run_closed, run_open
from service.bench.workloads import Call, Source, Workload, make_workload
from tests.bench_servers import Asked, SmallServer, pictures, response, right
from tests.conftest import free_port

SINGLES, MIXED = make_workload("singles"), make_workload("mixed")


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps average 1 / rate and vary as much as they average; a seed gives the same ones again."""
    times = list(islice(arrival_times(50.0, 7), 20_000))
    gaps = [after - before for before, after in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.02, rel=0.03)
    assert stdev(gaps) == pytest.approx(fmean(gaps), rel=0.05)
    assert list(islice(arrival_times(50.0, 7), 100)) == times[:100]
    assert list(islice(arrival_times(50.0, 8), 100)) != times[:100]


def test_open_loop_sends_what_is_due() -> None:
    """As many as the process says, and the workload's own requests in their order."""
    with SmallServer() as server:
        found = run_open(server.url, MIXED, 60.0, 1.0, 0.0)
    due = next(count for count, after in enumerate(arrival_times(60.0, 0)) if after >= 1.0)
    assert abs(found.sent - due) <= 2  # the loop starts a moment after its window
    assert (found.ok, found.failures, found.rate, found.clients) == (found.sent, {}, 60.0, None)
    sent = sorted(asked.body for asked in server.asked)
    assert sent == sorted(call.body for call in islice(MIXED.calls(), len(sent)))


def stalling(after: int, seconds: float) -> SmallServer:
    """A server that does nothing at all for a while when it gets its request number `after`."""
    stalled = False

    async def answer(asked: Asked) -> bytes:
        nonlocal stalled
        if len(server.asked) >= after and not stalled:
            stalled = True
            time.sleep(seconds)  # noqa: ASYNC251 (the whole server stands still)
        return await right(asked)

    server = SmallServer(answer)
    return server


def test_a_stall_counts_against_all_requests_that_were_due_in_it() -> None:
    """No coordinated omission: an open loop does not wait for the server, and neither does its clock."""
    with stalling(5, 1.5) as server:
        found = run_open(server.url, SINGLES, 40.0, 2.5, 0.0, deadline=0.5)
    with stalling(5, 1.5) as server:
        closed = run_closed(server.url, SINGLES, 1, 2.5, 0.0, deadline=0.5)
    late = found.sent - round(found.goodput * found.seconds)
    assert found.ok == found.sent
    assert late >= 20  # of the 40 that were due in the stall's first second
    assert late > closed.sent - round(closed.goodput * closed.seconds)  # a client that waits meets a stall once


def test_arrivals_over_the_limit_are_not_sent_and_have_failed() -> None:
    async def never(asked: Asked) -> bytes:
        await asyncio.sleep(60)
        return b""

    with SmallServer(never) as server:
        found = run_open(server.url, SINGLES, 60.0, 1.0, 0.0, timeout=2.0, max_outstanding=3)
    assert (found.ok, found.latency, found.requests_per_second, found.goodput) == (0, None, 0, 0)
    assert found.failures == {"timeout": 3, "not sent": found.sent - 3}
    assert len(server.asked) == 3
    assert found.sent > 20


def test_clients_of_a_closed_loop_have_one_request_each_under_way() -> None:
    under_way = most = 0

    async def answer(asked: Asked) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return await right(asked)

    with SmallServer(answer) as server:
        found = run_closed(server.url, SINGLES, 4, 0.7, 0.3)
    assert (most, server.connections) == (4, 4)
    assert (found.loop, found.clients, found.failures) == ("closed", 4, {})
    assert 4 <= found.ok == found.sent < len(server.asked)  # the warm-up's are not counted


def test_images_and_steps_are_counted_by_the_answer() -> None:
    """A server that makes fewer steps than it was asked for is not credited with them."""

    async def one_step(asked: Asked) -> bytes:
        count = asked.fields["batch_size"]
        return pictures(count, timesteps=[0], timings={"queue_ms": 1.0, "total_ms": 2.0})

    with SmallServer(one_step) as server:
        found = run_closed(server.url, MIXED, 2, 0.6, 0.0)
    assert found.image_steps_per_second == found.images_per_second > found.requests_per_second
    assert set(found.stages) == {"queue", "total", "outside"}


def test_what_is_no_right_answer_is_a_failure() -> None:
    async def bad(asked: Asked) -> bytes:
        kinds = (pictures(2), response(b"no json"), response(b"{}", "503 Service Unavailable"), b"no HTTP")
        return kinds[(len(server.asked) - 1) % 4]

    with SmallServer(bad) as server:
        found = run_closed(server.url, SINGLES, 1, 1.5, 0.0)
    assert (found.ok, found.images_per_second, found.latency) == (0, 0, None)
    assert set(found.failures) == {"bad answer", "503", "connection"}
    assert sum(found.failures.values()) == found.sent


def test_a_server_that_is_not_there_is_not_asked_in_a_frenzy() -> None:
    found = run_closed(f"http://127.0.0.1:{free_port()}", SINGLES, 2, 0.5, 0.0)
    assert found.failures == {"connection": found.sent}
    assert found.sent <= 2 * 6  # each client waits a tenth of a second after a failure


def test_bulk_requests_run_beside_the_interactive_ones() -> None:
    with SmallServer() as server:
        found = run_closed(server.url, make_workload("interactive"), 1, 0.6, 0.0)
    sizes = [asked.fields["batch_size"] for asked in server.asked]
    assert set(sizes) == {1, 32}
    assert set(found.kinds) == {"single", "bulk"}
    assert found.background_image_steps_per_second > 0
    assert found.latency is not None
    assert found.latency.count == found.ok <= sizes.count(1)


def test_the_end_does_not_wait_for_bulk() -> None:
    async def bulk_never(asked: Asked) -> bytes:
        if asked.fields["batch_size"] > 1:
            await asyncio.sleep(60)
        return await right(asked)

    with SmallServer(bulk_never) as server:
        began = time.monotonic()
        found = run_closed(server.url, make_workload("interactive"), 1, 0.5, 0.0)
        assert time.monotonic() - began < 30
    assert (found.failures, found.background_image_steps_per_second) == ({}, 0)
    assert set(found.kinds) == {"single"}


def test_a_call_may_expect_another_status_than_200_and_no_pictures() -> None:
    """As a picture's URL with `If-None-Match` does."""
    call = Call("304", "/a.png", b"", 0, 0, method="GET", headers={"If-None-Match": '"tag"'}, status=304)
    workload = Workload("304", Source(), lambda source, rng: call, 1)

    async def not_modified(asked: Asked) -> bytes:
        known = asked.headers.get("if-none-match") == '"tag"' and asked.line.startswith("GET /a.png ")
        return b"HTTP/1.1 304 Not Modified\r\n\r\n" if known else response(b"")

    with SmallServer(not_modified) as server:
        found = run_closed(server.url, workload, 2, 0.3, 0.0)
    assert (found.failures, found.images_per_second) == ({}, 0)
    assert found.ok > 2 >= server.connections


def test_processor_time_of_a_process_is_measured() -> None:
    """This one serves and generates both, so the server cannot have used less than the generator."""
    with SmallServer() as server:
        found = run_closed(server.url, SINGLES, 2, 0.5, 0.0, server_pid=os.getpid())
        alone = run_closed(server.url, SINGLES, 2, 0.2, 0.0)
    assert found.server_cpu_seconds is not None
    assert found.server_cpu_seconds > 0 < found.generator_cpu_seconds
    assert alone.server_cpu_seconds is None

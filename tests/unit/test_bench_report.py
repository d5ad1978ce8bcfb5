"""What the load generator makes of its records: percentiles, windows, rates."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.bench.report import Conditions, Latency, Record, Result, percentile, summarize

BEGIN, SECONDS, DEADLINE = 100.0, 10.0, 1.0


def result_of(*records: Record, rate: float | None = None) -> Result:
    return summarize(
        records,
        Conditions(
            workload="singles",
            clients=1 if rate is None else None,
            rate=rate,
            seconds=SECONDS,
            warm_up=2.0,
            deadline=DEADLINE,
            begin=BEGIN,
            generator_cpu_seconds=0.5,
            server_cpu_seconds=None,
        ),
    )


def record(intended: float, done: float, **fields: Any) -> Record:
    given: dict[str, Any] = {"kind": "single", "background": False, "outcome": "ok", "images": 1, "image_steps": 1}
    return Record(intended=intended, done=done, **{"sent": intended, **given, **fields})


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.5, 1), (1, 0.99, 1), (2, 0.5, 1), (4, 0.5, 2), (100, 0.95, 95), (100, 0.99, 99), (101, 0.99, 100)],
)
def test_percentile_is_the_nearest_rank(count: int, share: float, expected: int) -> None:
    """A value that was measured, which at least that share does not exceed."""
    assert percentile(range(1, count + 1), share) == expected


def test_distribution_needs_no_order() -> None:
    assert Latency.of([30.0, 10.0, 20.0]) == Latency(3, 20.0, 20.0, 30.0, 30.0, 30.0, 30.0)
    assert Latency.of([]) is None


def test_warm_up_is_left_out() -> None:
    """Neither what should have been sent before the window counts as sent, nor what was answered before it as done."""
    found = result_of(record(98.0, 99.0), record(99.5, 100.5), record(101.0, 101.2))
    assert (found.sent, found.ok) == (1, 1)
    assert found.requests_per_second == 0.2  # two answers came in the window
    assert found.latency is not None
    assert found.latency.max == pytest.approx(200)


def test_what_is_answered_after_the_window_has_a_latency_but_is_no_throughput() -> None:
    found = result_of(record(109.0, 112.0))
    assert (found.sent, found.ok, found.requests_per_second, found.image_steps_per_second) == (1, 1, 0, 0)
    assert found.latency is not None
    assert found.latency.max == pytest.approx(3000)


def test_latency_counts_from_when_it_should_have_been_sent() -> None:
    found = result_of(record(101.0, 103.0, sent=102.9), rate=1.0)
    assert found.latency is not None
    assert (found.loop, found.latency.mean) == ("open", pytest.approx(2000))
    assert found.send_lag_p99 == pytest.approx(1900)


def test_goodput_is_what_came_right_and_in_time() -> None:
    late, failed = record(101.0, 102.5), record(102.0, 102.1, outcome="503", images=0, image_steps=0)
    found = result_of(record(101.0, 101.9), late, failed)
    assert (found.goodput, found.requests_per_second) == (0.1, 0.2)
    assert (found.sent, found.ok, found.failures) == (3, 2, {"503": 1})


def test_background_counts_as_work_and_nothing_else() -> None:
    found = result_of(
        record(101.0, 101.5),
        record(101.0, 105.0, kind="bulk", background=True, images=32, image_steps=512),
        record(105.0, 106.0, kind="bulk", background=True, outcome="timeout", images=0, image_steps=0),
    )
    assert (found.sent, found.ok, found.failures, found.requests_per_second) == (1, 1, {}, 0.1)
    assert (found.images_per_second, found.image_steps_per_second) == (3.3, 51.3)
    assert found.background_image_steps_per_second == 51.2
    assert {name: times.count for name, times in found.kinds.items() if times} == {"single": 1, "bulk": 1}
    assert found.latency is not None
    assert found.latency.count == 1


def test_outside_is_what_the_server_did_not_account_for() -> None:
    timed = record(101.0, 101.5, stages={"queue": 100.0, "total": 350.0})
    found = result_of(timed, record(102.0, 102.5))
    means = {name: times.mean for name, times in found.stages.items() if times}
    assert means == {"queue": 100.0, "total": 350.0, "outside": pytest.approx(150.0)}


def test_run_without_answers_has_no_latency() -> None:
    found = result_of(record(101.0, 101.0, outcome="connection", images=0, image_steps=0))
    assert (found.latency, found.ok, found.failures) == (None, 0, {"connection": 1})
    assert result_of().send_lag_p99 == 0.0
    assert json.loads(json.dumps(found.to_json()))["failures"] == {"connection": 1}

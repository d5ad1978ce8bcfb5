"""What is accepted and what is refused at once, by the times of the steps alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import pytest

from service.engine.admission import Admission, Limits
from service.engine.job import Job
from service.engine.request import Sample, SizeTime
from service.engine.times import StepTimes
from service.errors import Overloaded


def admission(limits: Limits, engines: int = 1) -> Admission:
    """Of a model that does one image-step a second on each engine."""
    made = Admission(limits)
    made.times["m"] = StepTimes([SizeTime(1, 1.0)])
    made.engines = engines
    return made


def samples(count: int, *, client: str = "a", timeout: float | None = None, request: int = 0) -> list[Sample]:
    deadline = None if timeout is None else time.monotonic() + timeout
    return [
        Sample(id=1000 * request + i, request=request, client=client, model="m", seed=0, class_label=None,
               sigmas=(1.0,), request_steps=count, deadline=deadline)
        for i in range(count)
    ]  # fmt: skip


def accept(made: Admission, asked: Sequence[Sample]) -> None:
    made.check(asked, 0.0)
    made.count(Job(asked, 0, lambda job: None))


def test_a_request_that_would_end_after_its_deadline_is_refused_with_the_seconds_it_lacks() -> None:
    made = admission(Limits(max_queue_time=1e6))
    accept(made, samples(20, request=1))
    made.check(samples(4, timeout=30), 0.0)
    with pytest.raises(Overloaded) as error:
        made.check(samples(20, timeout=30), 0.0)
    assert error.value.retry_after == pytest.approx(10, abs=0.5)


def test_one_that_would_wait_longer_than_max_queue_time_is_told_how_much_longer() -> None:
    made = admission(Limits(max_queue_time=5))
    accept(made, samples(20, request=1))
    with pytest.raises(Overloaded) as error:
        made.check(samples(20), 0.0)
    assert error.value.retry_after == pytest.approx(15, abs=0.5)


def test_the_time_until_an_engine_is_back_counts() -> None:
    made = admission(Limits(max_queue_time=5))
    made.check(samples(2), 4.0)
    with pytest.raises(Overloaded, match="max_queue_time"):
        made.check(samples(2), 6.0)
    with pytest.raises(Overloaded, match="deadline"):
        made.check(samples(2, timeout=3), 2.0)


def test_what_breaks_the_deadlines_of_accepted_requests_is_refused_and_an_idle_service_takes_any_length() -> None:
    made = admission(Limits(request_timeout=30, max_queue_time=1e6))
    accept(made, samples(20, client="a", request=1))
    with pytest.raises(Overloaded, match="accepted") as error:
        made.check(samples(15, client="b"), 0.0)
    assert error.value.retry_after == pytest.approx(5)
    made.forget(cast(Job, type("Ended", (), {"id": 1})))
    made.check(samples(40), 0.0)


def test_engines_share_the_work() -> None:
    made = admission(Limits(max_queue_time=1e6), engines=2)
    accept(made, samples(20, request=1))
    made.check(samples(20, timeout=25), 0.0)

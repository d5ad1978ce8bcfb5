"""Estimates of step times follow live steps and recover from bad ones."""

from __future__ import annotations

import pytest

from service.engine import times
from service.engine.batching import RETRIED_EVERY, BatchSize, choose
from service.engine.request import SizeTime
from service.engine.times import StepTimes

SIZES = (SizeTime(4, 0.1), SizeTime(8, 0.16))


def test_one_slow_step_changes_nothing() -> None:
    estimates = StepTimes(SIZES)
    for seconds in (0.16, 0.16, 3.0):
        estimates.observe(8, seconds)
    assert estimates.now == SIZES


def test_lasting_change_is_followed() -> None:
    estimates = StepTimes(SIZES)
    for _ in range(3):
        estimates.observe(8, 0.4)
    assert estimates.now[1] == SizeTime(8, 0.4)


def test_a_busy_machine_slows_every_size_alike() -> None:
    """Else the sizes that did not run would look better than the one that did."""
    estimates = StepTimes(SIZES)
    for _ in range(3):
        estimates.observe(8, 0.48)
    assert estimates.now[0].seconds == pytest.approx(0.3)
    assert choose(8, estimates.now).size == choose(8, SIZES).size == 8


def test_what_was_measured_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = StepTimes(SIZES)
    for _ in range(3):
        estimates.observe(8, 0.4)
    monkeypatch.setattr(times, "FORGOTTEN_AFTER", 0.0)
    estimates.observe(4, 0.1)
    assert estimates.now == SIZES


def test_a_size_over_the_longest_step_time_is_not_chosen() -> None:
    assert choose(8, SIZES).size == 8
    assert choose(8, SIZES, longest=0.12).size == 4


def test_the_smallest_size_is_chosen_when_every_step_takes_too_long() -> None:
    assert choose(8, SIZES, longest=0.01).size == 4


def test_a_size_that_had_a_bad_time_at_the_start_is_found_again() -> None:
    """Two servers that start together measure each other; what they found then is not for ever."""
    true = {4: 0.1, 8: 0.16}
    estimates = StepTimes([SizeTime(4, 0.1), SizeTime(8, 0.3)])
    sizes = BatchSize(estimates, longest=1.0)

    def step(ready: int) -> int:
        size = sizes.choose(ready)
        estimates.observe(size, true[size])
        return size

    assert [step(8) for _ in range(4)] == [4, 4, 4, 4]
    for _ in range(4 * RETRIED_EVERY):
        step(8)
    assert [step(8) for _ in range(4)] == [8, 8, 8, 8]
    assert [step(6) for _ in range(2 * RETRIED_EVERY)] == [4] * 2 * RETRIED_EVERY


@pytest.mark.parametrize("better", [2, 4])
def test_a_smaller_size_that_is_as_good_in_service_is_found(better: int) -> None:
    """Batches one after the other, as they are timed at the start, flatter large ones."""
    true = {2: 0.05, 4: 0.1, 8: 0.2} if better == 2 else {2: 0.06, 4: 0.1, 8: 0.2}
    estimates = StepTimes([SizeTime(2, 0.057), SizeTime(4, 0.11), SizeTime(8, 0.2)])
    sizes = BatchSize(estimates, longest=1.0)
    for _ in range(12 * RETRIED_EVERY):
        size = sizes.choose(8)
        estimates.observe(size, true[size])
    found = [sizes.choose(8) for _ in range(RETRIED_EVERY)]
    assert found.count(better) >= RETRIED_EVERY - 2
    assert found.count(8) == 1


def test_a_smaller_size_that_is_far_worse_is_not_tried() -> None:
    sizes = BatchSize(StepTimes([SizeTime(1, 0.06), SizeTime(8, 0.16)]), longest=1.0)
    assert {sizes.choose(8) for _ in range(2 * RETRIED_EVERY)} == {8}


def test_a_size_that_takes_too_long_is_not_tried_either() -> None:
    sizes = BatchSize(StepTimes(SIZES), longest=0.12)
    assert {sizes.choose(8) for _ in range(2 * RETRIED_EVERY)} == {4}

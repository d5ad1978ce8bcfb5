"""Estimates of step times follow live steps and recover from bad ones."""

from __future__ import annotations

import pytest

from service.engine import times
from service.engine.batching import choose
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

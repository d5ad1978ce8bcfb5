"""The comparison's tables: ratios are taken within a round, for what the machine did meanwhile weighs on both sides."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.report import Series, closed_table, open_table


def series(system: str, figures: list[tuple[float, float | None]]) -> Series:
    """A round for every pair of image-steps per second and p99 in ms; None is no right answer."""
    found = Series(system)
    for rate, p99 in figures:
        rates = ("image_steps_per_second", "images_per_second", "requests_per_second")
        result: dict[str, Any] = dict.fromkeys(rates, rate)
        result |= {"sent": 10, "ok": 10 if p99 else 0, "latency": {"p50": p99 / 2, "p99": p99} if p99 else None}
        found.add("defaults", result)
    return found


def cells(table: str, system: str) -> list[str]:
    """The row of a system."""
    line = next(line for line in table.splitlines() if line.startswith(f"| {system} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


OURS = series("Onestep", [(60, 100), (80, 400), (70, 200)])


def test_throughput_is_compared_within_rounds() -> None:
    uneven = series("LitServe", [(20, 500), (16, 400), (70, 500)])  # ratios 3, 5, 1; of medians 3.5
    assert cells(closed_table("singles", [OURS, uneven]), "LitServe")[4] == "3.00x"


def test_p99_is_compared_within_rounds() -> None:
    uneven = series("LitServe", [(30, 500), (80, 400), (56, 300)])  # ratios 5, 1, 1.5; of medians 2
    assert cells(open_table("singles", 50, [OURS, uneven]), "LitServe")[3] == "1.50x"


def test_a_round_without_answers_has_no_ratio() -> None:
    silent = series("BentoML", [(30, 500), (0, None), (56, 300)])
    row = cells(open_table("singles", 50, [OURS, silent]), "BentoML")
    assert row[3] == ""
    assert row[4:] == ["none", "none", "33.3%"]

"""Batches are cut evenly, parts run side by side, and what a part raises comes back."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.engine.cpu import TeamChoice, rows_of_part, team_size
from service.engine.lanes import Lanes, split


@given(
    rows=st.integers(1, 200),
    lanes=st.integers(1, 32),
    allowed=st.sets(st.integers(1, 8), min_size=1).map(sorted),
)
def test_parts_cover_the_batch_and_none_is_too_large(rows: int, lanes: int, allowed: list[int]) -> None:
    parts = split(rows, lanes, allowed)
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(rows))
    assert all(1 <= stop - start <= allowed[-1] for start, stop in parts)


@given(rows=st.integers(1, 200), lanes=st.integers(1, 32))
def test_parts_differ_by_a_row_at_most_and_take_the_fewest_rounds(rows: int, lanes: int) -> None:
    lengths = [stop - start for start, stop in split(rows, lanes, (1, 2, 3, 4))]
    assert max(lengths) - min(lengths) <= 1
    assert -(-len(lengths) // lanes) == -(-rows // (4 * lanes))


def test_small_batches_use_every_lane() -> None:
    assert split(3, 2, (1, 2, 3, 4)) == [(0, 1), (1, 3)]
    assert split(16, 2, (1, 2, 3, 4)) == [(0, 4), (4, 8), (8, 12), (12, 16)]


def test_rows_share_a_part_when_it_would_be_padded_anyway() -> None:
    assert split(3, 2, (4,)) == [(0, 3)]
    assert split(6, 2, (4,)) == [(0, 3), (3, 6)]


def test_parts_run_at_the_same_time_with_the_threads_asked_for() -> None:
    lanes = Lanes(2)
    met = threading.Barrier(2, timeout=20)

    def part() -> tuple[int, bool]:
        met.wait()
        return torch.get_num_threads(), torch.is_inference_mode_enabled()

    assert lanes.run([part, part], threads=1) == [(1, True), (1, True)]
    assert lanes.run([part, part], threads=2) == [(2, True), (2, True)]
    lanes.close()


def test_what_a_part_raises_is_raised_and_the_lanes_go_on() -> None:
    lanes = Lanes(2)
    with pytest.raises(ZeroDivisionError):
        lanes.run([lambda: 1 // 0, lambda: 1], threads=1)
    assert lanes.run([lambda: 1, lambda: 2, lambda: 3], threads=1) == [1, 2, 3]
    lanes.close()


def test_teams_never_take_more_than_the_cores() -> None:
    assert [team_size(rows, 16) for rows in (1, 2, 3, 4, 8, 9, 16, 17)] == [16, 8, 4, 4, 2, 1, 1, 1]
    assert [team_size(rows, 1) for rows in (1, 2)] == [1, 1]


def test_a_team_is_used_while_it_is_quicker_and_tried_again_when_it_was_not() -> None:
    choice = TeamChoice()
    for _ in range(2):
        threads = choice.choose(4)
        choice.observe(4, threads, {4: 0.5, 1: 0.1}[threads])
    chosen = [choice.choose(4) for _ in range(64)]
    assert chosen.count(1) == 63
    for _ in range(30):
        choice.observe(4, 4, 0.01)
    assert choice.choose(4) == 4


def test_large_networks_run_row_by_row() -> None:
    assert rows_of_part(8_700_000, 32**2) == (1, 2, 3, 4, 6, 8)
    assert rows_of_part(296_000_000, 64**2) == (1,)

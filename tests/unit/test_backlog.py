"""The backlog predicts when a request would be done under fair sharing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.backlog import Backlog


def backlog_of(**rates: float) -> Backlog:
    """A backlog of models that do so many image-steps a second; `m` does one."""
    return Backlog({"m": 1.0, **rates}.__getitem__)


def test_an_empty_backlog_costs_only_the_request_itself() -> None:
    assert backlog_of().finish("a", 3.0) == 3.0


def test_a_small_request_waits_for_no_more_than_equal_shares() -> None:
    """A bulk request of 60 s delays one of 1 s by one second, from the same client or another."""
    backlog = backlog_of()
    backlog.set("bulk", 1, "m", 60)
    assert backlog.finish("bulk", 1.0) == 2.0
    assert backlog.finish("other", 1.0) == 2.0


def test_another_client_gets_as_much_as_all_requests_of_this_one() -> None:
    """Turns go to clients first: while this client's two requests get 1 s each, the other client gets 2 s."""
    backlog = backlog_of()
    backlog.set("me", 1, "m", 5)
    backlog.set("other", 2, "m", 60)
    assert backlog.finish("me", 1.0) == 4.0


def test_models_of_different_cost_are_added_up_in_seconds() -> None:
    """One client has 4 s of a slow model and 1 s of a quick one; all of it counts against what it may have."""
    backlog = backlog_of(slow=0.5)
    backlog.set("a", 1, "slow", 2)
    backlog.set("a", 2, "m", 1)
    assert backlog.total() == 5.0
    assert backlog.of("a") == (3, 5.0)
    assert backlog.finish("a", 2.0) == 2.0 + 2.0 + 1.0
    assert backlog.finish("b", 6.0) == 6.0 + 5.0


def test_a_rate_that_changes_counts_for_what_already_waits() -> None:
    rates = {"m": 1.0}
    backlog = Backlog(rates.__getitem__)
    backlog.set("a", 1, "m", 10)
    rates["m"] = 2.0
    assert backlog.total() == 5.0


def test_finished_requests_leave_nothing_behind() -> None:
    backlog = backlog_of()
    backlog.set("a", 1, "m", 2)
    backlog.set("a", 1, "m", 0)
    assert (backlog.steps, backlog.total(), backlog.of("a")) == (0, 0, (0, 0))
    assert backlog.finish("b", 1.0) == 1.0


def simulate(work: dict[tuple[str, int], float], mine: tuple[str, int]) -> float:
    """Round robin over clients and then their requests in slices of 1, until `mine` is done."""
    left = dict(work)
    clients = sorted({client for client, _ in left})
    turns = {client: [key for key in left if key[0] == client] for client in clients}
    clock = 0.0
    while True:
        for client in clients:
            while turns[client] and left[turns[client][0]] <= 0:
                turns[client].pop(0)
            if not turns[client]:
                continue
            key = turns[client].pop(0)
            turns[client].append(key)
            left[key] -= 1
            clock += 1
            if left[mine] <= 0:
                return clock


@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), st.integers(1, 30), min_size=1),
    st.integers(1, 30),
)
def test_the_estimate_agrees_with_a_simulation(work: dict[tuple[str, int], int], mine: int) -> None:
    """The estimate is an upper bound of round robin, and above it by less than a turn of everybody."""
    backlog = backlog_of()
    requests = {key: request for request, key in enumerate(work)}
    for key, steps in work.items():
        backlog.set(key[0], requests[key], "m", 99)
        backlog.set(key[0], requests[key], "m", steps)
    estimate = backlog.finish("b", mine)
    exact = simulate({**{k: float(v) for k, v in work.items()}, ("b", 99): float(mine)}, ("b", 99))
    assert exact <= estimate + len(work) + 1
    assert estimate <= exact + len(work) + 3


@pytest.mark.parametrize("count", [1, 5])
def test_total_is_the_sum_over_all(count: int) -> None:
    backlog = backlog_of()
    for i in range(count):
        backlog.set(f"c{i % 2}", i, "m", 3)
    assert backlog.total() == backlog.steps == 3 * count

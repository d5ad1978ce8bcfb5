"""The backlog predicts when a request would be done, as the scheduler shares."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.engine.backlog import Backlog
from service.engine.request import Sample
from service.engine.scheduler import Scheduler


def backlog_of(**rates: float) -> Backlog:
    """A backlog of models that do so many image-steps a second; `m` does one."""
    return Backlog({"m": 1.0, **rates}.__getitem__)


def test_an_empty_backlog_costs_only_the_request_itself() -> None:
    assert backlog_of().finish("a", "m", 3) == 3.0


def test_a_small_request_waits_for_no_more_than_a_large_ones_share() -> None:
    """60 image-steps left of 63 delay another client's request by as many as it has itself.

    One of the same client, being of a smaller class, goes first, and the large one has a row between two of it.
    """
    backlog = backlog_of()
    backlog.set("bulk", 1, "m", 60, 63)
    assert backlog.finish("bulk", "m", 1) == 1.0
    assert backlog.finish("bulk", "m", 3) == 5.0
    assert backlog.finish("other", "m", 1) == 2.0


def test_of_two_classes_the_smaller_goes_first() -> None:
    """Sixteen rows of the larger wait for sixteen of the smaller; fifteen of the smaller for fourteen of the larger."""
    backlog = backlog_of()
    backlog.set("small", 1, "m", 15, 15)
    backlog.set("small", 2, "m", 15, 15)
    assert backlog.finish("small", "m", 16) == 16.0 + 16.0
    backlog = backlog_of()
    backlog.set("large", 1, "m", 63, 63)
    assert backlog.finish("large", "m", 15) == 15.0 + 14.0


def test_bulk_gets_less_beside_small_requests() -> None:
    """Rows cost a request of 1,000 image-steps, class 4, four times as much as one of class 0."""
    backlog = backlog_of()
    backlog.set("a", 1, "m", 1000, 1000)
    assert backlog.finish("a", "m", 3) == 3.5


def test_what_waits_in_its_class_goes_first() -> None:
    """Two requests for two image-steps, one of them half done, delay a third by three seconds."""
    backlog = backlog_of()
    backlog.set("a", 1, "m", 1, 2)
    backlog.set("a", 2, "m", 2, 2)
    assert backlog.finish("a", "m", 2) == 5.0


def test_another_client_gets_as_much_as_all_requests_of_this_one() -> None:
    """Turns go to clients first: while this client's two classes get 2 s and 1 s, the other client gets 3 s."""
    backlog = backlog_of()
    backlog.set("me", 1, "m", 5, 5)
    backlog.set("other", 2, "m", 60, 60)
    assert backlog.finish("me", "m", 2) == 6.0


def test_models_of_different_cost_are_added_up_in_seconds() -> None:
    """One client has 4 s of a slow model and 1 s of a quick one; all of it counts against what it may have."""
    backlog = backlog_of(slow=0.5)
    backlog.set("a", 1, "slow", 2, 2)
    backlog.set("a", 2, "m", 1, 1)
    assert backlog.total() == 5.0
    assert backlog.of("a") == (3, 5.0)
    assert backlog.finish("a", "m", 2) == 2.0 + 4.0 + 1.0
    assert backlog.finish("b", "m", 6) == 6.0 + 5.0


def test_a_rate_that_changes_counts_for_what_already_waits() -> None:
    rates = {"m": 1.0}
    backlog = Backlog(rates.__getitem__)
    backlog.set("a", 1, "m", 10, 10)
    rates["m"] = 2.0
    assert backlog.total() == 5.0


def test_finished_requests_leave_nothing_behind() -> None:
    backlog = backlog_of()
    backlog.set("a", 1, "m", 2, 2)
    backlog.set("a", 1, "m", 0, 2)
    assert (backlog.steps, backlog.total(), backlog.of("a")) == (0, 0, (0, 0))
    assert backlog.finish("b", "m", 1) == 1.0


def image_steps(scheduler: Scheduler, client: str, number: int, left: int, asked: int) -> None:
    """Adds a request that has `left` image-steps, of one step each, of the `asked` ones."""
    for i in range(left):
        scheduler.add(
            Sample(
                id=1000 * number + i,
                request=number,
                client=client,
                model="m",
                seed=0,
                class_label=None,
                sigmas=(1.0,),
                request_steps=asked,
            )
        )


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.integers(1, 5)),
        st.integers(1, 80).flatmap(lambda asked: st.tuples(st.integers(1, asked), st.just(asked))),
        min_size=1,
    ),
    st.integers(1, 80),
)
@example({("b", 2): (1, 16), ("a", 1): (3, 3), ("b", 1): (1, 4), ("c", 1): (3, 3)}, 1)
def test_the_estimate_agrees_with_the_scheduler(work: dict[tuple[str, int], tuple[int, int]], mine: int) -> None:
    """A forward of one row a second ends a request when the backlog says, give or take a turn of each client."""
    backlog, scheduler = backlog_of(), Scheduler()
    for number, ((client, _), (left, asked)) in enumerate(work.items()):
        backlog.set(client, number, "m", asked, asked)
        backlog.set(client, number, "m", left, asked)
        image_steps(scheduler, client, number, left, asked)
    estimate = backlog.finish("b", "m", mine)
    image_steps(scheduler, "b", 99, mine, mine)
    exact = 0
    while any(sample.request == 99 for sample in scheduler._samples.values()):
        scheduler.update(scheduler.schedule(1))
        exact += 1
    assert exact == pytest.approx(estimate, abs=3)


@pytest.mark.parametrize("count", [1, 5])
def test_total_is_the_sum_over_all(count: int) -> None:
    backlog = backlog_of()
    for i in range(count):
        backlog.set(f"c{i % 2}", i, "m", 3, 3)
    assert backlog.total() == backlog.steps == 3 * count


def test_clients_whose_requests_ended_are_forgotten() -> None:
    backlog = backlog_of()
    for number in range(100):
        backlog.set(f"client {number}", number, "m", 2, 2)
        backlog.forget(number)
    assert not backlog._classes
    assert not backlog._clients.keys() - {()}

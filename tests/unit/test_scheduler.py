"""The scheduler shares batches fairly and forgets nothing; no tensor library is involved."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.request import Sample
from service.engine.scheduler import Scheduler


def sample(
    number: int,
    *,
    request: int = 1,
    client: str = "a",
    steps: int = 1,
    request_steps: int | None = None,
    isolated: bool = False,
    deadline: float = 9e9,
) -> Sample:
    return Sample(
        id=number,
        request=request,
        client=client,
        model="m",
        seed=number,
        class_label=None,
        sigmas=(1.0,) * steps,
        request_steps=request_steps or steps,
        isolated=isolated,
        deadline=deadline,
    )


def request(number: int, size: int, *, client: str = "a", steps: int = 1, isolated: bool = False) -> list[Sample]:
    total = size * steps
    return [
        sample(number * 1000 + i, request=number, client=client, steps=steps, request_steps=total, isolated=isolated)
        for i in range(size)
    ]


def fill(scheduler: Scheduler, *requests: list[Sample]) -> None:
    for samples in requests:
        for item in samples:
            scheduler.add(item)


def test_a_small_request_joins_the_next_batch_beside_a_bulk_one() -> None:
    """A bulk request of the same client does not keep a later single image out of the next batch."""
    scheduler = Scheduler()
    fill(scheduler, request(1, 64, steps=40))
    scheduler.update(scheduler.schedule(8))
    fill(scheduler, request(2, 1))
    batch = scheduler.schedule(8)
    assert [s.request for s in batch].count(2) == 1
    assert len(batch) == 8


def test_a_small_request_waits_for_no_turn_of_many_bulk_ones() -> None:
    """Fifty bulk requests of the same client get no more before a single image than one would."""
    scheduler = Scheduler()
    fill(scheduler, *[request(n, 64, steps=40) for n in range(50)])
    for _ in range(5):
        scheduler.update(scheduler.schedule(8))
    fill(scheduler, request(99, 1))
    assert 99 in {s.request for s in scheduler.schedule(8)}


def test_requests_of_a_size_are_answered_one_after_another() -> None:
    """Ten equal requests end in the order of their arrival, evenly; equal turns would end all of them last."""
    scheduler = Scheduler()
    fill(scheduler, *[request(n, 4, steps=4) for n in range(10)])
    ended: dict[int, int] = {}
    forwards = 0
    while len(scheduler):
        forwards += 1
        for done in scheduler.update(scheduler.schedule(8)):
            ended[done.request] = forwards
    assert list(ended) == sorted(ended)
    assert list(ended.values()) == [4, 4, 8, 8, 12, 12, 16, 16, 20, 20]


@pytest.mark.parametrize(("of_small", "of_large", "share"), [(1, 16, 0.5), (1, 64, 2 / 3), (1, 4096, 16 / 17)])
def test_size_classes_share_whatever_waits_in_them(of_small: int, of_large: int, share: float) -> None:
    """Endless small requests get this share of the rows beside endless large ones, and the large ones the rest."""
    scheduler, rows = Scheduler(), Counter[bool]()
    numbers = iter(range(1_000_000))
    waiting = {True: 0, False: 0}
    for _ in range(300):
        for small, size in ((True, of_small), (False, of_large)):
            while waiting[small] < 16:
                fill(scheduler, request(next(numbers), size))
                waiting[small] += size
        batch = scheduler.schedule(8)
        for item in batch:
            small = item.request_steps == of_small
            rows[small] += 1
            waiting[small] -= 1
        scheduler.update(batch)
    assert rows[True] / rows.total() == pytest.approx(share, abs=0.02)


def test_a_class_saves_nothing_up_while_it_has_too_little_to_fill_its_share() -> None:
    """One image of many steps takes one row of eight; others of its size that come later get no more than a share."""
    scheduler = Scheduler()
    fill(scheduler, request(1, 1, steps=60), request(2, 1000))
    for _ in range(50):
        scheduler.update(scheduler.schedule(8))
    fill(scheduler, *[request(n, 60) for n in range(3, 9)])
    rows: Counter[int] = Counter()
    for _ in range(4):
        batch = scheduler.schedule(8)
        rows.update(min(s.request, 3) for s in batch)
        scheduler.update(batch)
    assert rows[2] >= 0.8 * 4 * 8 / 5


def test_clients_get_equal_shares_whatever_they_ask() -> None:
    """A client with ten requests gets no more rows than one with a single request."""
    scheduler = Scheduler()
    fill(scheduler, *[request(n, 8, client="many", steps=50) for n in range(10)])
    fill(scheduler, request(99, 8, client="one", steps=50))
    rows: Counter[str] = Counter()
    for _ in range(20):
        batch = scheduler.schedule(4)
        rows.update(s.client for s in batch)
        scheduler.update(batch)
    assert rows["many"] == rows["one"] == 40


def test_more_clients_than_rows_all_get_their_turn() -> None:
    """With 10 clients and 4 rows, five batches serve each client twice."""
    scheduler = Scheduler()
    fill(scheduler, *[request(n, 1, client=f"c{n}", steps=50) for n in range(10)])
    rows: Counter[str] = Counter()
    for _ in range(5):
        batch = scheduler.schedule(4)
        rows.update(s.client for s in batch)
        scheduler.update(batch)
    assert set(rows.values()) == {2}


def test_images_of_a_request_finish_in_order() -> None:
    """Begun images end before others begin, so that few tensors are alive."""
    scheduler = Scheduler()
    fill(scheduler, request(1, 10, steps=3))
    order = []
    while len(scheduler):
        batch = scheduler.schedule(4)
        order += [s.id for s in scheduler.update(batch)]
    assert order == sorted(order)


def test_an_aborted_sample_is_passed_over_by_update() -> None:
    """A sample aborted between schedule and update is not finished, and the rest is."""
    scheduler = Scheduler()
    fill(scheduler, request(1, 3))
    batch = scheduler.schedule(3)
    assert scheduler.abort(batch[1].id) is batch[1]
    assert [s.id for s in scheduler.update(batch)] == [batch[0].id, batch[2].id]
    assert scheduler.abort(batch[1].id) is None
    assert len(scheduler) == 0


def test_suspects_run_apart_and_do_not_stop_the_others() -> None:
    """An isolated request's batch holds nobody else, and ordinary batches run in between."""
    scheduler = Scheduler()
    fill(scheduler, request(1, 2, steps=2, isolated=True), request(2, 2, steps=2), request(3, 1, isolated=True))
    seen = []
    while len(scheduler):
        ready = scheduler.ready()
        batch = scheduler.schedule(8)
        assert len(batch) == ready
        seen.append({s.request for s in batch})
        scheduler.update(batch)
    assert seen == [{1}, {2}, {3}, {2}, {1}]


def test_expired_lists_those_whose_deadline_is_not_after_now() -> None:
    """A deadline that is exactly now has passed."""
    scheduler = Scheduler()
    scheduler.add(sample(1, deadline=5.0))
    scheduler.add(sample(2, deadline=5.1))
    assert [s.id for s in scheduler.expired(5.0)] == [1]


def test_what_is_done_or_dropped_does_not_expire_and_is_not_kept() -> None:
    """A far deadline that nobody will reach is no memory that grows with every request."""
    scheduler = Scheduler()
    for number in range(1000):
        scheduler.add(sample(number, request=number))
        scheduler.update(scheduler.schedule(1)) if number % 2 else scheduler.abort(number)
    assert len(scheduler._deadlines) < 100  # before anything asks for what has expired, which empties it
    assert scheduler.expired(9e9) == []


def seconds_of_a_step(waiting: int, clients: int) -> float:
    """Least processor time that choosing a batch takes beside so many waiting requests."""
    scheduler = Scheduler()
    for number in range(waiting):
        scheduler.add(sample(number, request=number, client=f"c{number % clients}", steps=100))
    best = 9e9
    for _ in range(30):
        began = time.process_time()
        scheduler.expired(0)
        scheduler.update(scheduler.schedule(scheduler.ready() and 8))
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("clients", [1, 100])
def test_a_step_costs_no_more_beside_thousands_of_waiting_requests(clients: int) -> None:
    """100 times as many waiting requests are no reason for the engine to pause between steps."""
    assert seconds_of_a_step(10_000, clients) < 10 * seconds_of_a_step(100, clients)


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_everything_added_ends_exactly_once_and_no_batch_is_too_large(seed: int, limit: int) -> None:
    """Random arrivals, aborts and steps: no sample is lost, none runs twice at once, no batch is over its limit, and
    what comes next is known ahead."""
    rng = random.Random(seed)
    scheduler = Scheduler()
    expected: dict[int, int] = {}
    steps_made: Counter[int] = Counter()
    finished: set[int] = set()
    aborted: set[int] = set()
    next_request = 0
    while next_request < 12 or len(scheduler):
        if next_request < 12 and rng.random() < 0.5:
            next_request += 1
            steps = rng.randint(1, 4)
            new = request(
                next_request,
                rng.randint(1, 5),
                client=f"c{rng.randint(0, 2)}",
                steps=steps,
                isolated=rng.random() < 0.2,
            )
            fill(scheduler, new)
            expected.update((s.id, steps) for s in new)
        alive = [i for i in expected if i not in finished and i not in aborted]
        if alive and rng.random() < 0.1:
            victim = rng.choice(alive)
            assert scheduler.abort(victim) is not None
            aborted.add(victim)
        ahead = [s.id for s in scheduler.upcoming(limit)]
        batch = scheduler.schedule(limit)
        ids = [s.id for s in batch]
        assert ids == ahead or batch[0].isolated
        assert len(ids) == len(set(ids)) <= limit
        assert len({s.request for s in batch}) == 1 or not any(s.isolated for s in batch)
        steps_made.update(ids)
        finished.update(s.id for s in scheduler.update(batch))
    assert finished | aborted == set(expected)
    assert all(steps_made[i] == expected[i] for i in finished)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_nobody_starves(rows: int) -> None:
    """Every client steps within as many batches as there are clients, however small the batch."""
    scheduler = Scheduler()
    clients = 7
    fill(scheduler, *[request(n, 3, client=f"c{n}", steps=100) for n in range(clients)])
    last: dict[str, int] = {}
    for batch_number in range(60):
        batch = scheduler.schedule(rows)
        for item in batch:
            assert batch_number - last.get(item.client, -1) <= clients
            last[item.client] = batch_number
        scheduler.update(batch)
    assert len(last) == clients


def test_a_class_that_comes_late_has_saved_nothing_up() -> None:
    """Bulk that ran alone for long is not shut out by as many small rows as it had."""
    scheduler = Scheduler()
    fill(scheduler, request(1, 63))
    for _ in range(5):
        scheduler.update(scheduler.schedule(8))
    fill(scheduler, *[request(n, 1) for n in range(2, 34)])
    batch = [item for _ in range(2) for item in scheduler.schedule(8)]
    assert sum(item.request == 1 for item in batch) == 8


def test_what_is_aborted_in_a_step_is_not_counted_as_held() -> None:
    """Else nothing would be ready while there is something, or something while there is nothing."""
    scheduler = Scheduler()
    fill(scheduler, request(1, 2, steps=2))
    batch = scheduler.schedule(1)
    scheduler.hold(batch)
    assert scheduler.ready() == 1
    scheduler.abort(batch[0].id)
    assert scheduler.ready() == 1


def test_a_suspect_in_a_step_takes_nothing_from_what_is_ready_beside_it() -> None:
    scheduler = Scheduler()
    fill(scheduler, request(1, 1, steps=2, isolated=True), request(2, 1, steps=2))
    batch = scheduler.schedule(8)
    assert batch[0].isolated
    scheduler.hold(batch)
    assert scheduler.ready() == 1

"""Counts outstanding work and says when a new request would be done, under the scheduler's fair sharing.

Kept in image-steps and grouped by how many are left, so that a question costs the same with ten requests waiting as
with thousands; answered in seconds of the device, so that models of different cost can be added up. No clocks, no HTTP.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")


class Work(NamedTuple):
    """Image-steps of one model that a request still needs."""

    model: str
    steps: int


Total = tuple[Work, ...]  # what a client still needs, a `Work` for each model, ordered


class Backlog:
    """Outstanding work of every client's requests."""

    def __init__(self, rate: Callable[[str], float]) -> None:
        """`rate` is how many image-steps of a model are done in a second at present."""
        self._rate = rate
        self._requests: dict[int, tuple[str, Work]] = {}  # request -> its client and work
        self._sizes: defaultdict[str, Counter[Work]] = defaultdict(Counter)  # client -> how many need as much
        self._totals: defaultdict[str, Counter[str]] = defaultdict(Counter)  # client -> model -> image-steps
        self._clients: Counter[Total] = Counter()  # how many clients need as much
        self.steps = 0  # image-steps of all

    def set(self, client: str, request: int, model: str, steps: int) -> None:
        """What a request still needs; 0 forgets it."""
        known, now = self._requests.pop(request, None), Work(model, steps)
        if steps:
            self._requests[request] = client, now
        if known == (client, now):
            return
        if known is not None:
            self._add(*known, -1)
        if steps:
            self._add(client, now, 1)

    def _add(self, client: str, work: Work, sign: int) -> None:
        sizes, totals = self._sizes[client], self._totals[client]
        _count(self._clients, _total(totals), -1)
        _count(sizes, work, sign)
        _count(totals, work.model, sign * work.steps)
        _count(self._clients, _total(totals), 1)
        self.steps += sign * work.steps
        if not sizes:
            del self._sizes[client], self._totals[client]

    def total(self) -> float:
        """Seconds until all of it is done, if nothing more comes."""
        return sum(count * self._seconds(total) for total, count in self._clients.items())

    def of(self, client: str) -> tuple[int, float]:
        """Image-steps that a client has outstanding, and their seconds."""
        total = _total(self._totals.get(client, Counter()))
        return sum(work.steps for work in total), self._seconds(total)

    def finish(self, client: str, seconds: float) -> float:
        """Seconds until a new request of `client` that needs `seconds` is done.

        Turns go round clients, and within a client round its requests: until this one is done no other
        request of the client gets more than it does, and no other client more than this client does.
        """
        sizes = self._sizes.get(client, Counter())
        own = seconds + sum(count * min(self._seconds((work,)), seconds) for work, count in sizes.items())
        mine = _total(self._totals.get(client, Counter()))
        others = ((total, count - (total == mine)) for total, count in self._clients.items())
        return own + sum(count * min(self._seconds(total), own) for total, count in others)

    def _seconds(self, total: Total) -> float:
        return sum(work.steps / self._rate(work.model) for work in total)


def _total(totals: Counter[str]) -> Total:
    return tuple(sorted(Work(model, steps) for model, steps in totals.items()))


def _count(counter: Counter[Key], key: Key, change: int) -> None:
    """As `counter[key] += change`, but what is 0 is forgotten."""
    counter[key] += change
    if not counter[key]:
        del counter[key]

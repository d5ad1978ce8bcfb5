"""Counts outstanding work and says when a new request would be done, as the scheduler shares.

Kept in image-steps and added up by client and size class, so that a question costs the same with ten requests waiting
as with thousands; answered in seconds of the device, which models of different cost have in common. No clocks, no HTTP.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from service.engine.size_classes import row_cost, size_class

Key = TypeVar("Key")


class Work(NamedTuple):
    """Image-steps of one model."""

    model: str
    steps: int


Total = tuple[Work, ...]  # what a client still needs, a `Work` for each model, ordered


class Backlog:
    """Outstanding work of every client's requests."""

    def __init__(self, rate: Callable[[str], float]) -> None:
        """`rate` is how many image-steps of a model are done in a second at present."""
        self._rate = rate
        self._requests: dict[int, tuple[str, int, Work]] = {}  # request -> its client, size class, what it still needs
        self._classes: defaultdict[str, Counter[tuple[int, str]]] = defaultdict(Counter)  # client -> class, model
        self._clients: Counter[Total] = Counter()  # how many clients need as much
        self.steps = 0  # image-steps of all

    def set(self, client: str, request: int, model: str, left: int, asked: int) -> None:
        """What a request still needs of the image-steps that it asked for; 0 forgets it."""
        self.forget(request)
        if left:
            self._requests[request] = entry = client, size_class(asked), Work(model, left)
            self._add(*entry, 1)

    def forget(self, request: int) -> None:
        """The request needs nothing more."""
        entry = self._requests.pop(request, None)
        if entry is not None:
            self._add(*entry, -1)

    def _add(self, client: str, of_class: int, work: Work, sign: int) -> None:
        classes = self._classes[client]
        _count(self._clients, _total(classes), -1)
        _count(classes, (of_class, work.model), sign * work.steps)
        _count(self._clients, _total(classes), 1)
        self.steps += sign * work.steps
        if not classes:
            del self._classes[client]

    def total(self) -> float:
        """Seconds until all of it is done, if nothing more comes."""
        return sum(count * self._seconds(total) for total, count in self._clients.items())

    def of(self, client: str) -> tuple[int, float]:
        """Image-steps that a client has outstanding, and their seconds."""
        total = _total(self._classes.get(client, Counter()))
        return sum(work.steps for work in total), self._seconds(total)

    def finish(self, client: str, model: str, steps: int) -> float:
        """Seconds until a new request of `client` for `steps` image-steps is done.

        What its class has waiting goes first. Until its last row each other class of the client gets its share at
        most, those of smaller requests a row more, since they go first where two are level; and each other client
        no more than this one does.
        """
        classes = self._classes.get(client, Counter())
        mine = _total(classes)
        own = size_class(steps)
        seconds: defaultdict[int, float] = defaultdict(float)
        for (of_class, named), count in classes.items():
            seconds[of_class] += count / self._rate(named)
        row = 1 / self._rate(model)
        ahead = seconds.pop(own, 0.0) + steps * row
        beside = sum(
            min(left, (ahead - row) * row_cost(own) / row_cost(other) + row * (other < own))
            for other, left in seconds.items()
        )
        turn = ahead + beside
        others = ((total, count - (total == mine)) for total, count in self._clients.items())
        return turn + sum(count * min(self._seconds(total), turn) for total, count in others)

    def _seconds(self, total: Total) -> float:
        return sum(work.steps / self._rate(work.model) for work in total)


def _total(classes: Counter[tuple[int, str]]) -> Total:
    models: Counter[str] = Counter()
    for (_, model), steps in classes.items():
        models[model] += steps
    return tuple(sorted(Work(model, steps) for model, steps in models.items()))


def _count(counter: Counter[Key], key: Key, change: int) -> None:
    """As `counter[key] += change`, but what is 0 is forgotten."""
    counter[key] += change
    if not counter[key]:
        del counter[key]

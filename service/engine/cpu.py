"""Runs a network on the CPU: forwards of a few rows side by side on the cores, each on one of them."""

from __future__ import annotations

import threading
import time as clock
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from service.engine.forward import Forward
from service.engine.lanes import Lanes, Place, Way, filled, split
from service.engine.network import Mark, keys

Item = TypeVar("Item")
Result = TypeVar("Result")

ROWS = (1, 2, 3, 4, 6, 8)  # of a part: more gain little, and who comes later waits for them
LARGE = 10**11  # parameters times pixels: from here on one row fills a core as well as several do
RETRIED_EVERY = 64  # forwards that could have a team: then the slower of two ways is timed again


class CpuNetwork:
    """A network on the CPU, as `service.engine.network.Network`.

    Parts of one to eight rows run side by side, one thread each: those of one call, and whatever else was started.
    When there are fewer rows than free cores, a row may have a team of threads. Only admitted ways are used, so the
    choice among them is a matter of time alone.
    """

    def __init__(self, forward: Forward, threads: int, rows: Sequence[int] = ROWS) -> None:
        """`rows` are those that a part may have, ascending from 1."""
        self.device = torch.device("cpu")
        self.plan = forward.plan
        self._forward = forward
        self._rows = tuple(rows)
        self._lanes = Lanes(threads)
        self._started = threading.local()  # in a lane: how many of them its work takes
        self._teams = TeamChoice()
        self._admitted: frozenset[Way] = frozenset(self.candidates)

    @property
    def lanes(self) -> CpuNetwork:
        """As `service.engine.network.SideBySide`."""
        return self

    @property
    def count(self) -> int:
        """Lanes: the cores."""
        return self._lanes.count

    @property
    def anchors(self) -> tuple[Way, ...]:
        """The largest parts, else single rows; one thread each."""
        return Way(self._rows[-1], 1), Way(1, 1)

    @property
    def candidates(self) -> tuple[Way, ...]:
        """Parts of one thread, then rows with a team."""
        most = self._lanes.count if self._forward.teams else 1
        teams = sorted({team_size(rows, self._lanes.count) for rows in range(1, most)} - {1})
        return (*(Way(rows, 1) for rows in self._rows), *(Way(1, threads) for threads in teams))

    def admit(self, ways: Sequence[Way]) -> None:
        """Restricts calls to these ways; at least one of them has one thread."""
        self._admitted = frozenset(ways)

    def sizes(self, largest: int) -> list[int]:
        """One row; then as many as make the lanes' parts grow by a row."""
        most = max(way.rows for way in self._admitted)
        full = (self._lanes.count * rows for rows in self._rows if rows <= most)
        return sorted({1, *(min(size, largest) for size in full)})

    def padded(self, rows: int) -> int:
        """Parts of a size that is not admitted are filled up."""
        allowed = self._allowed(1)
        parts = split(rows, self._lanes.count, allowed)
        return sum(next(size for size in allowed if size >= stop - start) for start, stop in parts)

    def place(self, ready: int, free: int) -> Place | None:
        """What a row gets that is alone, or one of few, while `free` lanes wait; None when there is a row for each."""
        team = team_size(ready, free)
        if team == 1 or Way(1, team) not in self._admitted:
            return None
        return Place(1, self._teams.choose(team), team)

    def start(self, work: Callable[[], Result], place: Place) -> Future[Result]:
        """`work` in a lane; this network's calls in it have the threads of their `place`."""

        def started() -> Result:
            self._started.lanes = place.lanes
            return work()

        return self._lanes.start(started, 1)

    def observe(self, place: Place, seconds: float) -> None:
        """How long work in a place took."""
        if place.team > 1:
            self._teams.observe(place.team, place.lanes, seconds)

    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor | None, /) -> Tensor:
        """Model output `[B, C, H, W]` float32 for rows `x` at network times `time` `[B]`.

        Takes every lane, or if called by work in a lane, what that was given.
        """
        if self._lanes.inside:
            return self._run_here(x, time, class_labels, self._started.lanes)
        place = self.place(len(x), self._lanes.count)
        if place is None:
            return self._run(x, time, class_labels, 1)
        began = clock.perf_counter()
        output = self._run(x, time, class_labels, place.lanes)
        self.observe(place, clock.perf_counter() - began)
        return output

    def run_as(self, way: Way, x: Tensor, time: Tensor, class_labels: Tensor | None) -> Tensor:
        """As a call, but every part in one way, admitted or not."""
        bounds = [(start, min(start + way.rows, len(x))) for start in range(0, len(x), way.rows)]
        return self._run_parts(x, time, class_labels, bounds, [way.rows], way.threads)

    def mark(self) -> Mark:
        """Nothing is ever under way when a call has returned."""
        return Mark(lambda: None, lambda: True)

    def copy_out(self, value: Tensor) -> Callable[[], Tensor]:
        """`value` is on the host."""
        return lambda: value

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """One after the other: the cores are better used by the lanes."""
        return list(map(function, items))

    def close(self) -> None:
        """Ends its threads."""
        self._lanes.close()

    def _run(self, x: Tensor, time: Tensor, class_labels: Tensor | None, threads: int) -> Tensor:
        allowed = self._allowed(threads)
        bounds = split(len(x), self._lanes.count, allowed)
        return self._run_parts(x, time, class_labels, bounds, allowed, threads)

    def _allowed(self, threads: int) -> list[int]:
        return sorted(way.rows for way in self._admitted if way.threads == threads)

    def _run_parts(
        self,
        x: Tensor,
        time: Tensor,
        class_labels: Tensor | None,
        bounds: Sequence[tuple[int, int]],
        allowed: Sequence[int],
        threads: int,
    ) -> Tensor:
        inputs = (x, *self._forward.prepare(keys(time, class_labels)))
        parts = [partial(self._part, inputs, *bound, allowed) for bound in bounds]
        return torch.cat(self._lanes.run(parts, threads))

    def _run_here(self, x: Tensor, time: Tensor, class_labels: Tensor | None, threads: int) -> Tensor:
        """One part after the other in the lane that asks; only the network has a team."""
        allowed = self._allowed(threads)
        inputs = (x, *self._forward.prepare(keys(time, class_labels)))
        self._lanes.use(threads)
        try:
            return torch.cat([self._part(inputs, *bound, allowed) for bound in split(len(x), 1, allowed)])
        finally:
            self._lanes.use(1)

    def _part(self, inputs: tuple[Tensor, ...], start: int, stop: int, allowed: Sequence[int]) -> Tensor:
        rows = next(size for size in allowed if size >= stop - start)
        part = tuple(filled(each, start, stop, rows) for each in inputs)
        return self._forward.run(part[0], part[1:])[: stop - start]


def rows_of_part(parameters: int, pixels: int) -> tuple[int, ...]:
    """Rows that a part may have, for a network of so many parameters and images of so many pixels."""
    return ROWS if parameters * pixels < LARGE else (1,)


def team_size(rows: int, cores: int) -> int:
    """Threads for each of `rows` forwards on `cores`: a power of two, all of them together no more than cores."""
    return 1 << max(0, (cores // rows).bit_length() - 1) if rows <= cores else 1


class TeamChoice:
    """Whether a row gets a team or one thread, by which was quicker of late.

    On an idle machine a team wins; beside other busy processes it waits for its slowest member at every layer
    and loses. Both give the same bits.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}
        self._calls: dict[int, int] = {}

    def choose(self, team: int) -> int:
        """Threads for a row that could have `team`: so many, or 1."""
        self._calls[team] = self._calls.get(team, 0) + 1
        untried = [threads for threads in (team, 1) if (team, threads) not in self._seconds]
        if untried:
            return untried[0]
        quicker, slower = sorted((team, 1), key=lambda threads: self._seconds[team, threads])
        return slower if self._calls[team] % RETRIED_EVERY == 0 else quicker

    def observe(self, team: int, threads: int, seconds: float) -> None:
        """Notes a time; later ones count for more."""
        before = self._seconds.get((team, threads), seconds)
        self._seconds[team, threads] = 0.7 * before + 0.3 * seconds

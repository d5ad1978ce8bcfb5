"""How long a step of each batch size takes: certified times, corrected by what live steps show.

Times never decide bits. They decide how large a batch is, so a wrong one must heal, and a busy moment must not
make the sizes that ran in it look worse than those that did not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from statistics import median

from service.engine.request import SizeTime

KEPT = 9  # live steps of one size
NEEDED = 3  # live steps before they outweigh the certified time
FORGOTTEN_AFTER = 30.0  # seconds


class StepTimes:
    """Present estimates for the admitted sizes of one model."""

    def __init__(self, certified: Sequence[SizeTime]) -> None:
        self._certified = tuple(certified)
        self._live: dict[int, deque[tuple[float, float]]] = {}
        self._now = self._certified

    @property
    def now(self) -> tuple[SizeTime, ...]:
        """Every admitted size with the seconds a step of it takes at present, ascending by size."""
        return self._now

    def observe(self, size: int, seconds: float) -> None:
        """Notes what a live step of `size` rows took.

        A size that ran of late has the median of its steps; the others have their certified times, as much longer
        or shorter as the machine is now.
        """
        now = time.monotonic()
        self._live.setdefault(size, deque(maxlen=KEPT)).append((now, seconds))
        recent = {size: self._recent(size, now) for size in self._live}
        paces = [recent[each.size] / each.seconds for each in self._certified if recent.get(each.size)]
        pace = median(paces) if paces else 1.0
        self._now = tuple(SizeTime(each.size, recent.get(each.size) or each.seconds * pace) for each in self._certified)

    def _recent(self, size: int, now: float) -> float:
        """Median of a size's recent steps; 0.0 when they are too few."""
        recent = [seconds for when, seconds in self._live[size] if when > now - FORGOTTEN_AFTER]
        return median(recent) if len(recent) >= NEEDED else 0.0

"""When samples expire, the earliest first: asking costs nothing while none has."""

from __future__ import annotations

import heapq


class Deadlines:
    """Deadlines of those that are neither done nor dropped."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._alive: set[int] = set()

    def __len__(self) -> int:
        """What is kept, of those that are gone included."""
        return len(self._heap)

    def add(self, deadline: float, sample: int) -> None:
        """A sample that has to be done by then, in `time.monotonic()` seconds."""
        self._alive.add(sample)
        heapq.heappush(self._heap, (deadline, sample))

    def discard(self, sample: int) -> None:
        """It does not matter any more."""
        self._alive.discard(sample)
        if len(self._heap) > 2 * len(self._alive) + 64:  # a far deadline outlives its sample: drop those now and then
            self._heap = [entry for entry in self._heap if entry[1] in self._alive]
            heapq.heapify(self._heap)

    def passed(self, now: float) -> list[int]:
        """Those whose deadline is not after `now`, the earliest first; each is told once."""
        passed = []
        while self._heap and self._heap[0][0] <= now:
            _, sample = heapq.heappop(self._heap)
            if sample in self._alive:
                passed.append(sample)
        return passed

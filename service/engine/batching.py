"""Chooses how many rows the next forward gets, from what the certification measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from service.engine.request import SizeTime
from service.engine.times import StepTimes

RETRIED_EVERY = 32  # batches smaller than they could have been: then a full one shows how long it takes now
NEAR_BEST = 0.98  # of the best throughput: a smaller batch this near it wins, since all in it wait less


def padded(rows: int, sizes: Sequence[SizeTime]) -> SizeTime:
    """The smallest admitted size that holds `rows`."""
    return next(size for size in sizes if size.size >= rows)


def choose(ready: int, sizes: Sequence[SizeTime], longest: float = inf) -> SizeTime:
    """The smallest admitted size within 2 % of the most image-steps per second that `ready` rows allow.

    `sizes` ascend and are not empty; those whose step takes more than `longest` seconds count only when all do,
    and then the smallest is chosen. Rows beyond `ready` are padding and count as nothing.
    """

    def rate(size: SizeTime) -> float:
        return min(ready, size.size) / size.seconds

    allowed = [size for size in sizes if size.seconds <= longest] or sizes[:1]
    best = max(map(rate, allowed))
    return next(size for size in allowed if rate(size) >= NEAR_BEST * best)


class BatchSize:
    """Chooses sizes from times that live steps correct.

    A size that is never chosen would never be corrected, and a machine that was busy at the start has bad times.
    """

    def __init__(self, times: StepTimes, longest: float) -> None:
        self._times = times
        self._longest = longest
        self._smaller = 0

    def choose(self, ready: int) -> int:
        """Rows of the next batch, at most, when `ready` wait."""
        size = choose(ready, self._times.now, self._longest).size
        full = max(
            (each.size for each in self._times.now if each.size <= ready and each.seconds <= self._longest),
            default=size,
        )
        if size >= full:
            return size
        self._smaller += 1
        return size if self._smaller % RETRIED_EVERY else full


def best_rate(sizes: Sequence[SizeTime]) -> float:
    """Image-steps per second at saturation."""
    return max(size.size / size.seconds for size in sizes)

"""Chooses how many rows the next forward gets, from what the certification measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from service.engine.request import SizeTime
from service.engine.times import StepTimes

RETRIED_EVERY = 32  # batches: then another size shows how long it takes now
PROMISING = 0.85  # of the throughput of the size that is chosen: what a smaller one has at least that is tried
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

    A size that is never chosen would never be corrected, and a machine that was busy at the start has bad times. So
    now and then a full batch is tried, or a smaller one that is nearly as good.
    """

    def __init__(self, times: StepTimes, longest: float) -> None:
        self._times = times
        self._longest = longest
        self._chosen = 0

    def choose(self, ready: int) -> int:
        """Rows of the next batch, at most, when `ready` wait."""
        sizes = self._times.now
        best = choose(ready, sizes, self._longest)
        self._chosen += 1
        rounds, turn = divmod(self._chosen, RETRIED_EVERY)
        if turn == 0:
            full = [each.size for each in sizes if each.size <= ready and each.seconds <= self._longest]
            return max([best.size, *full])
        if turn != RETRIED_EVERY // 2:
            return best.size
        least = PROMISING * best_rate([best])
        smaller = [each.size for each in sizes if each.size < best.size and best_rate([each]) >= least]
        return smaller[rounds % len(smaller)] if smaller else best.size


def best_rate(sizes: Sequence[SizeTime]) -> float:
    """Image-steps per second at saturation."""
    return max(size.size / size.seconds for size in sizes)

"""Forwards of a few rows run side by side on the cores.

A team of threads inside one forward waits for its slowest member at every layer; whole forwards of a few rows
side by side need not wait for each other at all. Their row count never exceeds a few, so what a row's kernels see
hardly depends on how many rows there are in all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Place(NamedTuple):
    """What the next forward gets."""

    rows: int  # at most
    lanes: int = 1  # that it takes: a row alone may have several cores
    team: int = 1  # that it could have taken


class Way(NamedTuple):
    """How one forward runs."""

    rows: int
    threads: int  # inside the forward


class Lanes:
    """Persistent threads that run forwards; they take the next one as soon as they are free."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._state = threading.local()

    def run(self, parts: Sequence[Callable[[], Result]], threads: int) -> list[Result]:
        """The results of `parts`, in order, each with `threads` threads inside. Raises what a part raises."""
        return [future.result() for future in [self.start(part, threads) for part in parts]]

    def start(self, work: Callable[[], Result], threads: int) -> Future[Result]:
        """`work` in a lane, with `threads` threads inside."""
        return self._pool.submit(self._work, work, threads)

    @property
    def inside(self) -> bool:
        """Whether a lane asks."""
        return hasattr(self._state, "threads")

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _work(self, work: Callable[[], Result], threads: int) -> Result:
        self.use(threads)
        with torch.inference_mode():
            return work()

    def use(self, threads: int) -> None:
        """The lane that asks has `threads` threads inside from now on."""
        if getattr(self._state, "threads", 0) != threads:
            torch.set_num_threads(threads)
            self._state.threads = threads


def filled(value: Tensor, start: int, stop: int, rows: int) -> Tensor:
    """Rows `start` to `stop` of `value`, filled up to `rows` with the first of them."""
    part = value[start:stop]
    missing = rows - (stop - start)
    return part if not missing else torch.cat([part, part[:1].expand(missing, *part.shape[1:])])


def split(rows: int, lanes: int, allowed: Sequence[int]) -> list[tuple[int, int]]:
    """Parts `(start, stop)` of a batch for `lanes`: as few and as even as their largest allowed size permits.

    A part may hold fewer rows than any allowed size; it is padded then.
    """
    largest = max(allowed)
    rounds = -(-rows // (lanes * largest))
    count = min(rows, lanes * rounds)
    if min(allowed) > 1:  # padding makes small parts cost as much as whole ones
        count = min(count, -(-rows // min(allowed)))
    bounds = [rows * i // count for i in range(count + 1)]
    return list(pairwise(bounds))

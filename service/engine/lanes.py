"""Parts of a batch run side by side on the cores.

A team of threads inside one forward waits for its slowest member at every layer; whole forwards of a few rows
side by side wait for each other once. Their row count never exceeds a few, so what a row's kernels see hardly
depends on the size of the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Way(NamedTuple):
    """How one forward runs."""

    rows: int
    threads: int  # inside the forward


class Lanes:
    """Persistent threads that run forwards; they take the next part of a batch as soon as they are free."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._state = threading.local()

    def run(self, parts: Sequence[Callable[[], Result]], threads: int) -> list[Result]:
        """The results of `parts`, in order, each with `threads` threads inside. Raises what a part raises."""
        return [future.result() for future in [self._pool.submit(self._part, part, threads) for part in parts]]

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _part(self, part: Callable[[], Result], threads: int) -> Result:
        if getattr(self._state, "threads", 0) != threads:
            torch.set_num_threads(threads)
            self._state.threads = threads
        with torch.inference_mode():
            return part()


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

"""Calls of the layers' kernels: done at once, or noted to be done together later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

CONVOLVE, ATTEND, NORMALISE, COPY, HALVE = range(5)  # what a step does
NUMBERS = 26  # of a step, at most

Step = tuple[int | float, ...]  # its kind, then what the kernel takes: addresses, numbers, truths
Runner = Callable[[int, int], None]  # takes the address of a table of steps, and their count


class _Noted(threading.local):
    """Of the thread that asks."""

    steps: list[Step] | None = None


_noted = _Noted()


class Instructions:
    """Those of a processor, by which steps are done."""

    def __init__(
        self,
        name: str,
        runner: Callable[[], Runner],
        addresses: dict[int, tuple[int, ...]],
        constants: Callable[[], tuple[int, ...]] = tuple,
    ) -> None:
        """`runner` compiles what does steps; `addresses` tells which of a step's numbers are those.

        `constants` are addresses that attention takes besides.
        """
        self.constants = constants
        self.name = name
        self.runner = cache(runner)
        self.addresses = addresses | {NORMALISE: (1, 2, 3, 4, 5, 6), COPY: (1, 2), HALVE: (1, 2)}

    def call(self, *step: int | float) -> None:
        """Does a step, or notes it."""
        if _noted.steps is not None:
            _noted.steps.append(step)
            return
        table = table_of([step])
        self.runner()(table.ctypes.data, 1)


def _by_tiles() -> Runner:
    from service.engine.amx_steps import runner

    return runner()


def _tile_constants() -> tuple[int]:
    from service.engine.amx_conv import constants

    return (constants().ctypes.data,)


def _by_vectors() -> Runner:
    from service.engine.vector_steps import runner

    return runner()


TILES = Instructions("amx", _by_tiles, {CONVOLVE: (1, 2, 3, 4, 5, 17, 18, 19, 20), ATTEND: (1, 2, 3)}, _tile_constants)
VECTORS = Instructions("vectors", _by_vectors, {CONVOLVE: (1, 2, 3, 4, 15, 16, 17, 18), ATTEND: (1, 2)})


@contextmanager
def noting(steps: list[Step]) -> Iterator[None]:
    """Adds this thread's calls to `steps` instead of doing them: what layers return has no values yet."""
    _noted.steps = steps
    try:
        yield
    finally:
        _noted.steps = None


def table_of(steps: Sequence[Step]) -> np.ndarray:
    """What a runner takes: int64 `[steps, 26]`."""
    table = np.zeros((len(steps), NUMBERS), np.int64)
    for row, step in zip(table, steps, strict=True):
        row[: len(step)] = [int(np.float32(x).view(np.int32)) if isinstance(x, float) else x for x in step]
    return table

"""Calls of the layers in `service.engine.amx_steps`: done at once, or noted to be done together later."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

CONVOLVE, ATTEND, NORMALISE, COPY, HALVE = range(5)  # what a step does
NUMBERS = 26  # of a step, at most

Step = tuple[int | float, ...]  # its kind, then what the kernel takes: addresses, numbers, truths


class _Noted(threading.local):
    """Of the thread that asks."""

    steps: list[Step] | None = None


_noted = _Noted()


def call(*step: int | float) -> None:
    """Does a step, or notes it."""
    if _noted.steps is not None:
        _noted.steps.append(step)
        return
    from service.engine.amx_steps import runner

    table = table_of([step])
    runner()(table.ctypes.data, 1)


@contextmanager
def noting(steps: list[Step]) -> Iterator[None]:
    """Adds this thread's calls to `steps` instead of doing them: what layers return has no values yet."""
    _noted.steps = steps
    try:
        yield
    finally:
        _noted.steps = None


def table_of(steps: Sequence[Step]) -> np.ndarray:
    """What `service.engine.amx_steps.runner` takes: int64 `[steps, 26]`."""
    table = np.zeros((len(steps), NUMBERS), np.int64)
    for row, step in zip(table, steps, strict=True):
        row[: len(step)] = [int(np.float32(x).view(np.int32)) if isinstance(x, float) else x for x in step]
    return table

"""What steps do besides convolution and attention, in Python that Numba compiles, and how steps become a function."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
from numba import carray
from numba.core.types import int64, voidptr

from service.engine import addresses, norm_kernels, steps, vectors
from service.engine.addresses import pointer_to
from service.engine.kept import compiled, kept
from service.engine.norm_kernels import float32_norm
from service.engine.steps import COPY, NORMALISE, Runner

QUARTER = np.float32(0.25)

_normalise = compiled(float32_norm)


@compiled
def _copy(target, source, run, step):
    """Runs of values, wherever four loops (sizes; how far apart in the target, and in the source) find them."""
    for a in range(step[4]):
        for b in range(step[5]):
            for c in range(step[6]):
                to = a * step[8] + b * step[9] + c * step[10]
                of = a * step[12] + b * step[13] + c * step[14]
                for d in range(step[7]):
                    outputs = carray(pointer_to(target + 4 * (to + d * step[11])), (run,), np.float32)
                    inputs = carray(pointer_to(source + 4 * (of + d * step[15])), (run,), np.float32)
                    for i in range(run):
                        outputs[i] = inputs[i]


@compiled
def _halve(x, output, rows, height, width, channels):
    """The means of two by two pixels each."""
    images = carray(x, (rows * height // 2, 2, width // 2, 2, channels), np.float32)
    outputs = carray(output, (rows * height // 2, width // 2, channels), np.float32)
    for y in range(images.shape[0]):
        for i in range(width // 2):
            for c in range(channels):
                total = images[y, 0, i, 0, c] + images[y, 0, i, 1, c] + images[y, 1, i, 0, c] + images[y, 1, i, 1, c]
                outputs[y, i, c] = total * QUARTER


@compiled
def do_other(s):
    """A step `[26]` that is by any processor's instructions: group normalisation, a copy, or means of pixels.

    It takes the arguments of `norm_kernels.group_norm`; for a copy of float32 addresses of target and source, values of
    a run, and for four loops the sizes, what they move the target by, and the source; for means of two by two pixels
    addresses of `x` `[rows, height, width, channels]` and the output, then these four. Addresses are numbers, a float32
    the integer of its bits.
    """
    if s[0] == NORMALISE:
        _normalise(
            pointer_to(s[1]), pointer_to(s[2]), pointer_to(s[3]), pointer_to(s[4]), pointer_to(s[5]), pointer_to(s[6]),
            s[7], s[8], s[9], s[10], s[11], np.int32(s[12]).view(np.float32), s[13] != 0, s[14] != 0,
        )  # fmt: skip
    elif s[0] == COPY:
        _copy(s[1], s[2], s[3], s)
    else:
        _halve(pointer_to(s[1]), pointer_to(s[2]), s[3], s[4], s[5], s[6])


def runner_of(function: Callable[[int, int], int], *parts: ModuleType) -> Runner:
    """`function`, of an address of steps `[count, 26]` of 64-bit integers and their count, compiled if it is not kept.

    It does them one after the other and returns `count`. `parts` are modules that it takes kernels from. The result
    raises MemoryError where there is no room for an array.
    """
    kernel = kept(int64(voidptr, int64), function, addresses, norm_kernels, steps, vectors, *parts)

    def run(table: int, count: int) -> None:
        if kernel(table, count) != count:  # what Numba compiles cannot raise: it ends, and gives 0
            raise MemoryError("no room for what a step computes in")

    return run

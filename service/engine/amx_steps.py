"""A network's layers one after the other in one call, in Python that Numba compiles.

Steps are rows of numbers: what to do, then what the layer's kernel takes. Between them nobody needs the interpreter,
nor its lock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import carray
from numba.core.types import int64, voidptr

from service.engine import amx, amx_attention, amx_calls, amx_conv_kernels, norm_kernels, vectors
from service.engine.amx_attention import attend
from service.engine.amx_calls import ATTEND, CONVOLVE, COPY, NORMALISE, NUMBERS
from service.engine.amx_conv_kernels import convolve, pointer_to
from service.engine.kept import compiled, kept
from service.engine.norm_kernels import float32_norm

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


def _run(table, count):
    for s in carray(table, (count, NUMBERS), np.int64):
        if s[0] == CONVOLVE:
            convolve(
                pointer_to(s[1]), pointer_to(s[2]), pointer_to(s[3]), pointer_to(s[4]), pointer_to(s[5]),
                s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15] != 0, s[16] != 0,
                pointer_to(s[17]), pointer_to(s[18]), pointer_to(s[19]), pointer_to(s[20]),
                s[21], s[22], np.int32(s[23]).view(np.float32), s[24] != 0, s[25] != 0,
            )  # fmt: skip
        elif s[0] == ATTEND:
            attend(pointer_to(s[1]), pointer_to(s[2]), pointer_to(s[3]), s[4], s[5], s[6], s[7])
        elif s[0] == NORMALISE:
            _normalise(
                pointer_to(s[1]), pointer_to(s[2]), pointer_to(s[3]), pointer_to(s[4]), pointer_to(s[5]),
                pointer_to(s[6]), s[7], s[8], s[9], s[10], s[11], np.int32(s[12]).view(np.float32),
                s[13] != 0, s[14] != 0,
            )  # fmt: skip
        elif s[0] == COPY:
            _copy(s[1], s[2], s[3], s)
        else:
            _halve(pointer_to(s[1]), pointer_to(s[2]), s[3], s[4], s[5], s[6])
    return count


@cache
def runner() -> Callable[[int, int], None]:
    """Takes the address of steps `[count, 26]` of 64-bit integers, and their count; compiled now if it is not kept.

    It raises MemoryError where there is no room for an array.

    A step is its kind, then the arguments of that kind: those of `amx_conv_kernels.convolve`, `amx_attention.attend`,
    `norm_kernels.group_norm`; for a copy of float32 addresses of target and source, values of a run, and for four loops
    the sizes, what they move the target by, and the source; for means of two by two pixels addresses of `x`
    `[rows, height, width, channels]` and the output, then these four. Addresses are numbers, a float32 the integer of
    its bits.
    """
    kernel = kept(int64(voidptr, int64), _run, amx, amx_attention, amx_calls, amx_conv_kernels, norm_kernels, vectors)

    def run(steps: int, count: int) -> None:
        if kernel(steps, count) != count:  # what Numba compiles cannot raise: it ends, and gives 0
            raise MemoryError("no room for what a step computes in")

    return run

"""A network's layers one after the other in one call, by Intel's tile instructions, in Python that Numba compiles.

Steps are rows of numbers: what to do, then what the layer's kernel takes. Between them nobody needs the interpreter,
nor its lock.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from service.engine import amx, amx_attention, amx_conv_kernels, step_kernels
from service.engine.addresses import pointer_to
from service.engine.amx_attention import attend
from service.engine.amx_conv_kernels import convolve
from service.engine.step_kernels import do_other, runner_of
from service.engine.steps import ATTEND, CONVOLVE, NUMBERS, Runner


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
        else:
            do_other(s)
    return count


def runner() -> Runner:
    """Does steps whose kinds have the arguments of `amx_conv_kernels.convolve` and `amx_attention.attend`."""
    return runner_of(_run, amx, amx_attention, amx_conv_kernels, step_kernels)

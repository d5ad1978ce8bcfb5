"""As `service.engine.amx_steps`, by vector instructions."""

from __future__ import annotations

import numpy as np
from numba import carray

from service.engine import step_kernels, vector_attention, vector_conv_kernels, vector_products, winograd
from service.engine.addresses import pointer_to
from service.engine.step_kernels import do_other, runner_of
from service.engine.steps import ATTEND, CONVOLVE, NUMBERS, Runner
from service.engine.vector_attention import attend
from service.engine.vector_conv_kernels import convolve


def _run(table, count):
    for s in carray(table, (count, NUMBERS), np.int64):
        if s[0] == CONVOLVE:
            convolve(
                pointer_to(s[1]), pointer_to(s[2]), pointer_to(s[3]), pointer_to(s[4]),
                s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13] != 0, s[14] != 0,
                pointer_to(s[15]), pointer_to(s[16]), pointer_to(s[17]), pointer_to(s[18]),
                s[19], s[20], np.int32(s[21]).view(np.float32), s[22] != 0, s[23] != 0,
            )  # fmt: skip
        elif s[0] == ATTEND:
            attend(pointer_to(s[1]), pointer_to(s[2]), s[3], s[4], s[5], s[6])
        else:
            do_other(s)
    return count


def runner() -> Runner:
    """Does steps whose kinds have the arguments of `vector_conv_kernels.convolve` and `vector_attention.attend`."""
    return runner_of(_run, step_kernels, vector_attention, vector_conv_kernels, vector_products, winograd)

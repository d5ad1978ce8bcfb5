"""A network's layers by a processor's instructions, and all of them as one call where that can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from service.engine.blocks import mix_pixels, quicken
from service.engine.kernel_conv import NHWC, PANEL
from service.engine.norm import replace_norms
from service.engine.operator_steps import UnknownStepError
from service.engine.packing import Convolution, pack_convolutions
from service.engine.program import Programs
from service.engine.steps import ATTEND, NORMALISE, Instructions

log = logging.getLogger(__name__)


def mix_pixels_by(instructions: Instructions, qkv: Tensor, heads: int) -> Tensor:
    """As `service.engine.blocks.mix_pixels`, by a kernel where 32 divides the numbers of pixels and of channels."""
    rows, channels, height, width = qkv.shape
    if height * width % PANEL or channels // 3 // heads % PANEL:
        return mix_pixels(qkv, heads)
    output = torch.empty((rows, channels // 3, height, width), memory_format=NHWC)
    addresses = qkv.data_ptr(), output.data_ptr(), *instructions.constants()
    instructions.call(ATTEND, *addresses, rows, height * width, heads, channels // 3 // heads)
    return output


def quicken_by(
    instructions: Instructions,
    body: nn.Module,
    shapes: dict[nn.Module, tuple[int, ...]],
    convolution: Convolution,
    inputs: Sequence[Tensor],
) -> Programs | None:
    """Replaces the layers of `body`, given the `(C, H, W)` that reaches each and some inputs of one row.

    The result does what all of it does in one call; None if something in it is no step of one.
    """
    pack_convolutions(body, shapes, convolution)
    replace_norms(body, partial(instructions.call, NORMALISE))  # it takes what `norm_kernels.group_norm` takes
    quicken(body, shapes, convolution, partial(mix_pixels_by, instructions))
    programs = Programs(body, instructions)
    try:
        programs(inputs)
    except UnknownStepError as error:
        log.info("this network runs layer by layer: no step does %s", error)
        return None
    return programs

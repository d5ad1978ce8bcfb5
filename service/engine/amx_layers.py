"""A network's layers by Intel's tile instructions, and all of them as one call where that can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from service.engine.amx_calls import ATTEND, NORMALISE, call
from service.engine.amx_conv import DEPTH, NHWC, constants
from service.engine.amx_copies import UnknownStepError
from service.engine.amx_program import Programs
from service.engine.blocks import mix_pixels, quicken
from service.engine.norm import replace_norms
from service.engine.packing import Convolution, pack_convolutions

log = logging.getLogger(__name__)


def mix_pixels_by_tiles(qkv: Tensor, heads: int) -> Tensor:
    """As `service.engine.blocks.mix_pixels`, by tiles where they divide the numbers of pixels and of channels."""
    rows, channels, height, width = qkv.shape
    if height * width % DEPTH or channels // 3 // heads % DEPTH:
        return mix_pixels(qkv, heads)
    output = torch.empty((rows, channels // 3, height, width), memory_format=NHWC)
    addresses = qkv.data_ptr(), output.data_ptr(), constants().ctypes.data
    call(ATTEND, *addresses, rows, height * width, heads, channels // 3 // heads)
    return output


normalise = partial(call, NORMALISE)
"""Takes what `service.engine.norm_kernels.group_norm` takes."""


def quicken_by_tiles(
    body: nn.Module, shapes: dict[nn.Module, tuple[int, ...]], convolution: Convolution, inputs: Sequence[Tensor]
) -> Programs | None:
    """Replaces the layers of `body`, given the `(C, H, W)` that reaches each and some inputs of one row.

    The result does what all of it does in one call; None if something in it is no step of one.
    """
    pack_convolutions(body, shapes, convolution)
    replace_norms(body, normalise)
    quicken(body, shapes, convolution, mix_pixels_by_tiles)
    programs = Programs(body)
    try:
        programs(inputs)
    except UnknownStepError as error:
        log.info("this network runs layer by layer: no step does %s", error)
        return None
    return programs

"""Convolutions in float32 by Intel's tile instructions, several times as quick as by vector instructions."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from service.engine.kernel_conv import PANEL, Form, KernelConv2d, Norm
from service.engine.packing import Convolution, FusedConv2d, PackedConv2d
from service.engine.steps import CONVOLVE, TILES

log = logging.getLogger(__name__)

TILE = 16  # pixels, output channels
DEPTH = PANEL  # input channels of a tile
PIECES = 3  # bfloat16 that make a float32
CACHE = 400_000  # bytes that the pieces of images taken at once should not exceed


class AmxConv2d(KernelConv2d):
    """A convolution by `service.engine.amx_conv_kernels`."""

    def __init__(self, conv: nn.Conv2d, parts: int) -> None:
        """`conv` is one that `fits`; values are that many bfloat16 (one: rounded, and so are weights), or three."""
        super().__init__(conv)
        self._parts = parts
        self._side = int(conv.kernel_size[0])
        self._pieces, self._weight = _packed(conv, *self._channels, parts)

    def call(self, x: Tensor, other: Tensor | None, output: Tensor, norm: Norm | None, form: Form) -> None:
        """As `KernelConv2d`'s."""
        rows, channels, height, width = x.shape
        side = self._side
        if side == 1:  # no borders: all pixels are one line
            height, width = 1, height * width
        pixels = (height + side - 1) * (width + side - 1)
        together = min(rows, max(2, CACHE // (2 * self._parts * pixels * channels)))
        to = output.data_ptr()
        added = to if other is None else other.data_ptr()
        TILES.call(
            *(CONVOLVE, x.data_ptr(), added, to, self._weight.data_ptr(), constants().ctypes.data),
            *(rows, together, height, width, channels, output.shape[1], side, self._pieces, self._parts),
            *(other is not None, norm is not None, *(norm or (to, to, to, to)), *form),
        )


def has_tiles() -> bool:
    """Whether convolutions here can be by tile instructions: the processor, Linux and Numba have to allow it."""
    try:
        from service.engine.amx import available
    except ImportError as error:
        log.warning("convolutions are slower than they could be, for there is no Numba: %s", error)
        return False
    return available()


def amx_convolution(dtype: torch.dtype) -> Convolution | None:
    """Makes one of these, or where it does not fit a `PackedConv2d`; None where there are no tile instructions.

    Images are float32. In `dtype` bfloat16 values are rounded to that where they are multiplied.
    """
    if not has_tiles():
        return None

    parts = 1 if dtype == torch.bfloat16 else PIECES

    def made(conv: nn.Conv2d, shape: tuple[int, ...]) -> FusedConv2d:
        return AmxConv2d(conv, parts) if AmxConv2d.fits(conv) else PackedConv2d(conv, shape)

    return made


@cache
def constants() -> np.ndarray:
    """What kernels read: a tile of ones for a bias' pieces, and the tiles' sizes."""
    from service.engine import amx

    ones = np.zeros((TILE, DEPTH), np.uint16)
    ones[:, :PIECES] = 0x3F80  # bfloat16's
    return np.concatenate([ones.view(np.uint8).ravel(), amx.palette()])


def _split(values: Tensor) -> list[Tensor]:
    """One to three float32 tensors of values that bfloat16 holds, whose sum is `values`."""
    pieces: list[Tensor] = []
    while len(pieces) < PIECES and (not pieces or values.any()):
        pieces.append((values.view(torch.int32) & -0x10000).view(torch.float32))
        values = values - pieces[-1]
    return pieces


def _packed(conv: nn.Conv2d, channels: int, out_channels: int, parts: int) -> tuple[int, Tensor]:
    """Pieces of a weight, and for each 16 output channels a tile of biases, then tiles of weights as they are needed.

    A tile holds 32 input channels, two by two side by side for each of 16 output channels.
    """
    side = conv.kernel_size[0]
    weight = torch.zeros(out_channels, channels, side, side)
    weight[: conv.out_channels, : conv.in_channels] = conv.weight.detach()
    pieces = [weight.bfloat16().float()] if parts == 1 else _split(weight)
    blocks = out_channels // TILE
    tiles = torch.stack(pieces).view(len(pieces), blocks, TILE, channels // DEPTH, DEPTH // 2, 2, side, side)
    tiles = tiles.permute(1, 3, 6, 7, 0, 4, 2, 5).reshape(blocks, -1, TILE, DEPTH)
    biases = torch.zeros(blocks, 1, TILE, TILE, 2)
    if conv.bias is not None:
        bias = torch.zeros(out_channels)
        bias[: conv.out_channels] = conv.bias.detach()
        for i, piece in enumerate(_split(bias)):
            biases[:, 0, i // 2, :, i % 2] = piece.view(blocks, TILE)
    return len(pieces), torch.cat([biases.view(blocks, 1, TILE, DEPTH), tiles], 1).to(torch.bfloat16)

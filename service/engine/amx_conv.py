"""Convolutions in float32 by Intel's tile instructions, several times as quick as by vector instructions."""

from __future__ import annotations

import logging
from functools import cache
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from service.engine.amx_calls import CONVOLVE, call
from service.engine.norm import KernelGroupNorm, RowGroupNorm
from service.engine.packing import Convolution, FusedConv2d, PackedConv2d

log = logging.getLogger(__name__)

TILE = 16  # pixels, output channels
DEPTH = 32  # input channels of a tile
PIECES = 3  # bfloat16 that make a float32
UNNORMED = (1, 0, 0.0, False, False)  # groups and so on, where there is no normalisation
NHWC = torch.channels_last
CACHE = 400_000  # bytes that the pieces of images taken at once should not exceed


class AmxConv2d(FusedConv2d):
    """A convolution of a form that `service.engine.amx_conv_kernels` has. Missing channels of a tile are zeros."""

    def __init__(self, conv: nn.Conv2d, parts: int) -> None:
        """`conv` is one that `fits`; values are that many bfloat16 (one: rounded, and so are weights), or three."""
        super().__init__()
        self._parts = parts
        self._side, self._stride = int(conv.kernel_size[0]), int(conv.stride[0])
        self._made = conv.out_channels
        self._channels = (_whole(conv.in_channels, DEPTH), _whole(conv.out_channels, 2 * TILE))
        self._simple = conv.out_channels == self._channels[1] and self._stride == 1
        self._pieces, self._weight = _packed(conv, *self._channels, parts)

    @staticmethod
    def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether `conv` is a convolution of a form that the kernel has: one or three pixels square."""
        return (
            type(conv) is nn.Conv2d
            and conv.weight.dtype == torch.float32
            and conv.padding_mode == "zeros"
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.stride in ((1, 1), (2, 2))
            and (conv.kernel_size, conv.padding) in (((1, 1), (0, 0)), ((3, 3), (1, 1)))
        )

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        return self._convolve(x, None, None, UNNORMED)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The convolution of `x` plus `other`, in one pass where no channel or pixel is left out."""
        return self._convolve(x, other, None, UNNORMED) if self._simple else self(x) + other

    def after(
        self,
        norm: RowGroupNorm,
        x: Tensor,
        *,
        silu: bool,
        modulation: tuple[Tensor, Tensor] | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """As `FusedConv2d`'s, in one pass."""
        whole = x.shape[1] == self._channels[0] and (other is None or self._simple)
        if whole and isinstance(norm, KernelGroupNorm):
            addresses, rest = norm.arguments(modulation)
            return self._convolve(x, other, addresses, (*rest, silu))
        return super().after(norm, x, silu=silu, modulation=modulation, other=other)

    def _convolve(
        self,
        x: Tensor,
        other: Tensor | None,
        norm: tuple[int, int, int, int] | None,
        form: tuple[int, int, float, bool, bool],
    ) -> Tensor:
        channels, out_channels = self._channels
        x = x.contiguous(memory_format=NHWC) if x.shape[1] == channels else _widened(x, channels)
        rows, _, height, width = x.shape
        output = torch.empty((rows, out_channels, height, width), memory_format=NHWC)
        side = self._side
        if side == 1:  # no borders: all pixels are one line
            height, width = 1, height * width
        pixels = (height + side - 1) * (width + side - 1)
        together = min(rows, max(2, CACHE // (2 * self._parts * pixels * channels)))
        to = output.data_ptr()
        added = output if other is None else other.contiguous(memory_format=NHWC)
        call(
            *(CONVOLVE, x.data_ptr(), added.data_ptr(), to, self._weight.data_ptr(), constants().ctypes.data),
            *(rows, together, height, width, channels, out_channels, side, self._pieces, self._parts),
            *(other is not None, norm is not None, *(norm or (to, to, to, to)), *form),
        )
        if self._simple:
            return output
        output = output[:, : self._made, :: self._stride, :: self._stride]
        return output if self._stride == 1 else output.contiguous(memory_format=NHWC)


def _whole(channels: int, of: int) -> int:
    return -(-channels // of) * of


def _widened(x: Tensor, channels: int) -> Tensor:
    """With zeros for the channels that `x` lacks."""
    wide = torch.empty((len(x), channels, *x.shape[2:]), memory_format=NHWC)
    wide[:, : x.shape[1]].copy_(x)
    wide[:, x.shape[1] :].zero_()
    return wide


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

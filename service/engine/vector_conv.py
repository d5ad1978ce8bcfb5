"""Convolutions in float32 by vector instructions, with fewer products than they seem to need."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor, nn

from service.engine.kernel_conv import Form, KernelConv2d, Norm
from service.engine.packing import Convolution, FusedConv2d, PackedConv2d
from service.engine.steps import CONVOLVE, VECTORS

log = logging.getLogger(__name__)

# Large tiles have the fewest products, and the most weights: worth it where many tiles share them, or caches hold them
LARGE, SMALL = 4, 2  # pixels of a tile's side
MANY, SOME = 64, 16  # tiles of an image
HELD = 8 << 20  # bytes of weights
FEW = 16  # output channels below which tiles cost more than they spare


class VectorConv2d(KernelConv2d):
    """A convolution by `service.engine.vector_conv_kernels`."""

    def __init__(self, conv: nn.Conv2d, size: int) -> None:
        """`conv` is one that `fits`; `size` of tiles, or 1 without."""
        super().__init__(conv)
        self._side, self._size = int(conv.kernel_size[0]), size
        self._depth = conv.in_channels
        self._weight = _packed(conv, size, self._channels[1])

    def call(self, x: Tensor, other: Tensor | None, output: Tensor, norm: Norm | None, form: Form) -> None:
        """As `KernelConv2d`'s."""
        rows, channels, height, width = x.shape
        to = output.data_ptr()
        VECTORS.call(
            *(CONVOLVE, x.data_ptr(), to if other is None else other.data_ptr(), to, self._weight.data_ptr()),
            *(rows, height, width, channels, output.shape[1], self._depth, self._side, self._size),
            *(other is not None, norm is not None, *(norm or (to, to, to, to)), *form),
        )


@cache
def has_vectors() -> bool:
    """Whether convolutions here can be by vectors of AVX2 or AVX-512: the processor and Numba have to allow it."""
    try:
        from service.engine.vectors import AVX2, has
    except ImportError as error:
        log.warning("convolutions are slower than they could be, for there is no Numba: %s", error)
        return False
    return has(AVX2)


def vector_convolution(dtype: torch.dtype) -> Convolution | None:
    """Makes one of these, or where it does not fit a `PackedConv2d`; None where there are no such instructions.

    All is float32 whatever the `dtype`: products of bfloat16 are no quicker by these instructions.
    """
    if not has_vectors():
        return None

    def made(conv: nn.Conv2d, shape: tuple[int, ...]) -> FusedConv2d:
        if not VectorConv2d.fits(conv):
            return PackedConv2d(conv, shape)
        return VectorConv2d(conv, _size(conv, shape))

    return made


def _size(conv: nn.Conv2d, shape: tuple[int, ...]) -> int:
    if conv.kernel_size == (1, 1) or conv.out_channels <= FEW:
        return 1
    tiles = -(-shape[1] // LARGE) * -(-shape[2] // LARGE)
    held = 4 * conv.in_channels * conv.out_channels * (LARGE + 2) ** 2 <= HELD
    return LARGE if tiles >= MANY or (tiles >= SOME and held) else SMALL


def _packed(conv: nn.Conv2d, size: int, out_channels: int) -> Tensor:
    """Biases, then panels of weights `[numbers, channels, output channels of a panel]`, turned if there are tiles."""
    from service.engine.vector_products import COLUMNS
    from service.engine.winograd import turned_weights

    weight = torch.zeros(out_channels, *conv.weight.shape[1:])
    weight[: conv.out_channels] = conv.weight.detach()
    turned = torch.from_numpy(turned_weights(weight.numpy(), size))
    panels = turned.view(*turned.shape[:2], -1, COLUMNS).permute(2, 0, 1, 3)
    biases = torch.zeros(out_channels)
    if conv.bias is not None:
        biases[: conv.out_channels] = conv.bias.detach()
    return torch.cat([biases, panels.float().flatten()])

"""A network's layers by the kernels of `service.engine.triton_calls`, on a GPU."""

from __future__ import annotations

from subprocess import CalledProcessError
from typing import TypeGuard

import torch
from torch import Tensor, nn
from triton import TritonError

from service.engine.norm import RowGroupNorm
from service.engine.packing import FusedConv2d
from service.engine.triton_calls import convolve, group_norm, tile_for

COMPILER_REFUSALS = (TritonError, CalledProcessError)  # of Triton's for a GPU, and of the C compiler that it calls


class TileConv2d(FusedConv2d):
    """A convolution whose sums are cut by the layer's shape alone."""

    def __init__(self, conv: nn.Conv2d, input_shape: tuple[int, ...]) -> None:
        """`input_shape` is `(C, H, W)`; `conv` is one that `fits`."""
        super().__init__()
        channels, height, width = input_shape
        self._stride, self._padding = int(conv.stride[0]), int(conv.padding[0])
        side = conv.kernel_size[0]
        pixels = 1
        for size in (height, width):
            pixels *= (size + 2 * self._padding - side) // self._stride + 1
        self._tile = tile_for(pixels, conv.out_channels, channels, side**2)
        self.weight: Tensor = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach()

    @staticmethod
    def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether `conv` is a convolution of a form that these kernels have."""
        return (
            type(conv) is nn.Conv2d
            and conv.padding_mode == "zeros"
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and all(len({*map(int, sizes)}) == 1 for sizes in (conv.kernel_size, conv.stride, conv.padding))
        )

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        return convolve(x, self.weight, self.bias, self._stride, self._padding, None, self._tile)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The convolution of `x` plus `other`, in one pass."""
        return convolve(x, self.weight, self.bias, self._stride, self._padding, other, self._tile)


class TileGroupNorm(RowGroupNorm):
    """The same by kernels for a GPU."""

    def normalised(self, x: Tensor, *, silu: bool, modulation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """As `RowGroupNorm`'s."""
        weight, bias = self.weight.view(-1), self.bias.view(-1)
        return group_norm(x, self._grouped[1], self._eps, weight, bias, silu, modulation)


def tile_norms(body: nn.Module) -> dict[nn.Module, nn.Module]:
    """One of these for every group normalisation of `body`, which is in float32 still: weights are copied."""
    return {norm: TileGroupNorm(norm) for norm in body.modules() if type(norm) is nn.GroupNorm and norm.affine}


def tile_body(body: nn.Module, shapes: dict[nn.Module, tuple[int, ...]], norms: dict[nn.Module, nn.Module]) -> None:
    """Replaces the convolutions of `body` that fit, given the `(C, H, W)` that reaches each, and its `norms`."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            if child in norms:
                setattr(parent, name, norms[child])
            elif child in shapes and TileConv2d.fits(child):
                setattr(parent, name, TileConv2d(child, shapes[child]))

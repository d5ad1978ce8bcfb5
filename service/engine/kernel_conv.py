"""Convolutions in float32 by kernels for a processor's own instructions: what those of all instructions share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeGuard

import torch
from torch import Tensor, nn

from service.engine.norm import KernelGroupNorm, RowGroupNorm
from service.engine.packing import FusedConv2d

PANEL = 32  # channels that kernels take at once
NHWC = torch.channels_last

Norm = tuple[int, int, int, int]  # addresses of a normalisation's weight, bias, scale and shift
Form = tuple[int, int, float, bool, bool]  # its groups, stride and eps, whether it is modulated, whether SiLU follows
UNNORMED: Form = (1, 0, 0.0, False, False)


class KernelConv2d(FusedConv2d):
    """A convolution of a form that kernels have. Missing channels are zeros."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """`conv` is one that `fits`."""
        super().__init__()
        self._stride = int(conv.stride[0])
        self._made = conv.out_channels
        self._channels = (_whole(conv.in_channels), _whole(conv.out_channels))
        self._simple = conv.out_channels == self._channels[1] and self._stride == 1

    @staticmethod
    def fits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether `conv` is a convolution of a form that kernels have: one or three pixels square."""
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

    @abstractmethod
    def call(self, x: Tensor, other: Tensor | None, output: Tensor, norm: Norm | None, form: Form) -> None:
        """Has the kernel called for channels-last images of whole panels."""

    def _convolve(self, x: Tensor, other: Tensor | None, norm: Norm | None, form: Form) -> Tensor:
        channels, out_channels = self._channels
        x = x.contiguous(memory_format=NHWC) if x.shape[1] == channels else _widened(x, channels)
        output = torch.empty((len(x), out_channels, *x.shape[2:]), memory_format=NHWC)
        self.call(x, None if other is None else other.contiguous(memory_format=NHWC), output, norm, form)
        if self._simple:
            return output
        output = output[:, : self._made, :: self._stride, :: self._stride]
        return output if self._stride == 1 else output.contiguous(memory_format=NHWC)


def _whole(channels: int) -> int:
    return -(-channels // PANEL) * PANEL


def _widened(x: Tensor, channels: int) -> Tensor:
    """With zeros for the channels that `x` lacks."""
    wide = torch.empty((len(x), channels, *x.shape[2:]), memory_format=NHWC)
    wide[:, : x.shape[1]].copy_(x)
    wide[:, x.shape[1] :].zero_()
    return wide

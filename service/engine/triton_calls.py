"""Kernels for a GPU in which a row's bits do not depend on the batch: convolution and group normalisation, NHWC.

Every value is summed in an order that depends on the layer's shape alone. cuDNN and cuBLAS choose kernels by the
number of rows, and split sums by where a row stands; there a row has other bits in every batch size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from service.engine import triton_kernels as kernels

PIXELS = 128  # whose sums one program takes, for norms
CHANNELS = 64  # of one program, for norms
BUSY = 128  # programs that keep a large GPU busy: the work of one row is cut into about so many


class Tile(NamedTuple):
    """How a convolution is cut: output pixels, output channels and input channels of one program, and the rest."""

    pixels: int
    channels: int
    depth: int
    split: int  # programs that share one tile, each with an equal part of the sum
    warps: int
    stages: int


def tile_for(pixels: int, out_channels: int, in_channels: int, taps: int) -> Tile:
    """The cut for a layer with `pixels` output pixels a row. The number of rows must not matter.

    What is quick for one row is not for many, and the reverse: few programs leave a GPU idle, a split sum has more
    to write. The rules are a compromise found on an H200.
    """
    deep = 64 if in_channels % 64 == 0 else 32 if in_channels > 16 else 16
    rounds = taps * triton.cdiv(in_channels, deep)
    if out_channels < 64:
        return Tile(64, 16 if out_channels <= 16 else 32, deep, 1, 4, 4)
    if pixels >= 4096:
        return Tile(128, 64, deep, 1, 4, 4)
    if taps == 1:
        return Tile(128 if pixels >= 1024 else 64, 128, deep, 1, 8 if pixels >= 1024 else 4, 3)
    if pixels >= 1024:
        return Tile(64, 128, deep, 1, 4, 4)
    if pixels <= 64:
        return Tile(64, 64, deep, _split(rounds, out_channels // 64), 4, 4)
    tiles = triton.cdiv(pixels, 128) * triton.cdiv(out_channels, 128)
    return Tile(128, 128, deep, _split(rounds, tiles), 8, 3)


def _split(rounds: int, tiles: int) -> int:
    """Into how many equal parts a sum of `rounds` is cut, so that one row's `tiles` keep a GPU busy."""
    fitting = (n for n in range(1, 9) if rounds % n == 0 and tiles * n <= BUSY and rounds // n >= 8)
    return max(fitting, default=1)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, other: Tensor | None, tile: Tile
) -> Tensor:
    """`x` `[B, C, H, W]` with `weight` `[K, C, side, side]`, both channels-last, plus `other` `[B, K, H', W']`."""
    rows, channels, height, width = x.shape
    out_channels, side = weight.shape[0], weight.shape[2]
    out_height, out_width = ((size + 2 * padding - side) // stride + 1 for size in (height, width))
    x = x.contiguous(memory_format=torch.channels_last)
    output = torch.empty(
        (rows, out_channels, out_height, out_width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    if other is not None:
        other = other.contiguous(memory_format=torch.channels_last)
    count = rows * out_height * out_width
    into = output
    if tile.split > 1:
        into = torch.empty((tile.split, count, out_channels), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(count, tile.pixels) * triton.cdiv(out_channels, tile.channels), tile.split)
    what = {"ADD": other is not None, "BIAS": bias is not None}
    kernels.convolve[grid](
        x, weight, bias, other, into, rows, height, width, out_height, out_width, tile.split, channels, out_channels,
        **what, SIDE=side, STRIDE=stride, PAD=padding, PARTS=tile.split > 1,
        HIGH=tile.pixels, WIDE=tile.channels, DEEP=tile.depth,
        EVEN_C=channels % tile.depth == 0, EVEN_K=out_channels % tile.channels == 0,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.split > 1:
        values = count * out_channels
        kernels.add_parts[(triton.cdiv(values, 1024),)](
            into, bias, other, output, values, tile.split, out_channels, **what, BLOCK=1024
        )
    return output


def group_norm(
    x: Tensor,
    groups: int,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    silu: bool,
    modulation: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Group normalisation of `x` `[B, C, H, W]`, channels-last, affine with `weight` and `bias` `[C]`.

    `modulation`: scale and shift `[B, C]`, views of one tensor: the result times `1 + scale` plus `shift`, before SiLU.
    """
    rows, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    pixels = height * width
    chunks, blocks = triton.cdiv(pixels, PIXELS), triton.cdiv(channels, CHANNELS)
    sums = torch.empty((rows, chunks, 2, channels), dtype=torch.float32, device=x.device)
    factors = torch.empty((rows, 2, channels), dtype=torch.float32, device=x.device)
    output = torch.empty_like(x, memory_format=torch.channels_last)
    kernels.sum[(rows, chunks, blocks)](x, sums, pixels, channels, PIXELS=PIXELS, CHANNELS=CHANNELS, AT_ONCE=32)
    scale, shift = modulation if modulation is not None else (weight, bias)
    kernels.factors[(rows, groups)](
        sums, weight, bias, scale, shift, scale.stride(0) if modulation is not None else 0,
        factors, pixels, chunks, eps, channels, channels // groups,
        WIDE=triton.next_power_of_2(channels // groups),
        MODULATED=modulation is not None, num_warps=1,
    )  # fmt: skip
    kernels.normalise[(rows, triton.cdiv(pixels, 32), blocks)](
        x, factors, output, pixels, channels, PIXELS=32, CHANNELS=CHANNELS, SILU=silu
    )
    return output

"""Kernels for a GPU in which a row's bits do not depend on the batch: convolution and group normalisation, NHWC.

Every value is summed in an order that depends on the layer's shape alone. cuDNN and cuBLAS choose kernels by the
number of rows, and split sums by where a row stands; there a row has other bits in every batch size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

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


# Compiled for tiles, not for layers: numbers of rows, pixels and channels are arguments
@triton.jit(do_not_specialize=["rows", "height", "width", "out_height", "out_width", "split"])
def _convolve(
    x, weight, bias, other, output, rows, height, width, out_height, out_width, split, C, K,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    ADD: tl.constexpr, BIAS: tl.constexpr, PARTS: tl.constexpr,
    HIGH: tl.constexpr, WIDE: tl.constexpr, DEEP: tl.constexpr, EVEN_C: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """One tile of an implicit matrix product: output pixels by output channels, over taps and input channels."""
    across = tl.cdiv(K, WIDE)
    pixel = (tl.program_id(0) // across) * HIGH + tl.arange(0, HIGH)
    out = (tl.program_id(0) % across) * WIDE + tl.arange(0, WIDE)
    part = tl.program_id(1)
    count = rows * out_height * out_width
    row = pixel // (out_height * out_width)
    top = (pixel // out_width % out_height) * STRIDE - PAD
    left = (pixel % out_width) * STRIDE - PAD
    channel = tl.arange(0, DEEP)
    filters = weight + (out * (SIDE * SIDE * C))[None, :]
    deep_rounds = tl.cdiv(C, DEEP)
    share = SIDE * SIDE * deep_rounds // split
    total = tl.zeros((HIGH, WIDE), tl.float32)
    for i in range(part * share, part * share + share):
        tap = i // deep_rounds
        c = (i % deep_rounds) * DEEP + channel
        y = top + tap // SIDE
        z = left + tap % SIDE
        there = (pixel < count) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        values = x + (((row * height + y) * width + z) * C)[:, None] + c[None, :]
        weights = filters + tap * C + c[:, None]
        if EVEN_C:
            a = tl.load(values, mask=there[:, None], other=0.0)
        else:
            a = tl.load(values, mask=there[:, None] & (c < C)[None, :], other=0.0)
        if EVEN_C and EVEN_K:
            b = tl.load(weights)
        else:
            b = tl.load(weights, mask=(out < K)[None, :] & (c < C)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    mask = (pixel < count)[:, None] & (out < K)[None, :]
    where = pixel.to(tl.int64)[:, None] * K + out[None, :]
    if PARTS:
        tl.store(output + part.to(tl.int64) * count * K + where, total, mask=mask)
    else:
        if BIAS:
            total += tl.load(bias + out, mask=out < K, other=0.0).to(tl.float32)[None, :]
        if ADD:
            total += tl.load(other + where, mask=mask, other=0.0).to(tl.float32)
        tl.store(output + where, total.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["split", "count"])
def _add_parts(
    parts, bias, other, output, count, split, K, ADD: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The parts of a split convolution, one after the other, then bias and residual; `count` is values of a part."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    total = tl.load(parts + at, mask=mask, other=0.0)
    for part in range(1, split):
        total += tl.load(parts + count.to(tl.int64) * part + at, mask=mask, other=0.0)
    if BIAS:
        total += tl.load(bias + at % K, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        total += tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=mask)


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
    _convolve[grid](
        x, weight, bias, other, into, rows, height, width, out_height, out_width, tile.split, channels, out_channels,
        **what, SIDE=side, STRIDE=stride, PAD=padding, PARTS=tile.split > 1,
        HIGH=tile.pixels, WIDE=tile.channels, DEEP=tile.depth,
        EVEN_C=channels % tile.depth == 0, EVEN_K=out_channels % tile.channels == 0,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if tile.split > 1:
        values = count * out_channels
        _add_parts[(triton.cdiv(values, 1024),)](
            into, bias, other, output, values, tile.split, out_channels, **what, BLOCK=1024
        )
    return output


@triton.jit(do_not_specialize=["pixels"])
def _sum(x, sums, pixels, C, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, AT_ONCE: tl.constexpr):
    """Of some pixels of one row, each channel's sum and sum of squares."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.zeros((CHANNELS,), tl.float32)
    second = tl.zeros((CHANNELS,), tl.float32)
    start = row.to(tl.int64) * pixels
    for i in range(0, PIXELS, AT_ONCE):
        pixel = chunk * PIXELS + i + tl.arange(0, AT_ONCE)
        mask = (pixel < pixels)[:, None] & (channel < C)[None, :]
        value = tl.load(x + (start + pixel)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        first += tl.sum(value, 0)
        second += tl.sum(value * value, 0)
    place = (row * tl.num_programs(1) + chunk) * 2 * C + channel
    tl.store(sums + place, first, mask=channel < C)
    tl.store(sums + place + C, second, mask=channel < C)


@triton.jit(do_not_specialize=["pixels", "chunks", "row_stride", "GROUP"])
def _factors(
    sums, weight, bias, scale, shift, row_stride, factors, pixels, chunks, eps, C, GROUP,
    WIDE: tl.constexpr, MODULATED: tl.constexpr,
):  # fmt: skip
    """For one group of one row, what each channel is to be multiplied by, and what to add."""
    row, group = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, WIDE)
    inside = member < GROUP
    channel = group * GROUP + member
    first = tl.zeros((WIDE,), tl.float32)
    second = tl.zeros((WIDE,), tl.float32)
    for chunk in range(chunks):
        place = (row * chunks + chunk) * 2 * C + channel
        first += tl.load(sums + place, mask=inside, other=0.0)
        second += tl.load(sums + place + C, mask=inside, other=0.0)
    mean = tl.sum(first, 0) / (GROUP * pixels)
    variance = tl.maximum(tl.sum(second, 0) / (GROUP * pixels) - mean * mean, 0.0)
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if MODULATED:
        more = tl.load(scale + row * row_stride + channel, mask=inside, other=0.0).to(tl.float32) + 1
        offset = offset * more + tl.load(shift + row * row_stride + channel, mask=inside, other=0.0).to(tl.float32)
        factor *= more
    factor *= 1 / tl.sqrt(variance + eps)
    tl.store(factors + row * 2 * C + channel, factor, mask=inside)
    tl.store(factors + row * 2 * C + C + channel, offset - mean * factor, mask=inside)


@triton.jit(do_not_specialize=["pixels"])
def _normalise(
    x, factors, output, pixels, C, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    """Some pixels of one row, each channel times its factor plus its offset; then SiLU, if asked."""
    row = tl.program_id(0)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = channel < C
    factor = tl.load(factors + row * 2 * C + channel, mask=inside, other=0.0)
    offset = tl.load(factors + row * 2 * C + C + channel, mask=inside, other=0.0)
    mask = (pixel < pixels)[:, None] & inside[None, :]
    place = (row.to(tl.int64) * pixels + pixel)[:, None] * C + channel[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    tl.store(output + place, value.to(output.dtype.element_ty), mask=mask)


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
    _sum[(rows, chunks, blocks)](x, sums, pixels, channels, PIXELS=PIXELS, CHANNELS=CHANNELS, AT_ONCE=32)
    scale, shift = modulation if modulation is not None else (weight, bias)
    _factors[(rows, groups)](
        sums, weight, bias, scale, shift, scale.stride(0) if modulation is not None else 0,
        factors, pixels, chunks, eps, channels, channels // groups,
        WIDE=triton.next_power_of_2(channels // groups),
        MODULATED=modulation is not None, num_warps=1,
    )  # fmt: skip
    _normalise[(rows, triton.cdiv(pixels, 32), blocks)](
        x, factors, output, pixels, channels, PIXELS=32, CHANNELS=CHANNELS, SILU=silu
    )
    return output

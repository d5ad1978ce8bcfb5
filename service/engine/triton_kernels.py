"""The programs that a GPU runs for `service.engine.triton_calls`, in Triton's language. Images are NHWC."""

from __future__ import annotations

import triton
import triton.language as tl


# Compiled for tiles, not for layers: numbers of rows, pixels and channels are arguments
@triton.jit(do_not_specialize=["rows", "height", "width", "out_height", "out_width", "split"])
def convolve(
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
        values = x + (((row * height + y) * width + z).to(tl.int64) * C)[:, None] + c[None, :]
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
def add_parts(
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


@triton.jit(do_not_specialize=["pixels"])
def sum(x, sums, pixels, C, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, AT_ONCE: tl.constexpr):
    """Of some pixels of one row, each channel's sum and sum of squares."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.zeros((AT_ONCE, CHANNELS), tl.float32)
    second = tl.zeros((AT_ONCE, CHANNELS), tl.float32)
    start = row.to(tl.int64) * pixels
    for i in range(0, PIXELS, AT_ONCE):
        pixel = chunk * PIXELS + i + tl.arange(0, AT_ONCE)
        mask = (pixel < pixels)[:, None] & (channel < C)[None, :]
        value = tl.load(x + (start + pixel)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        first += value
        second += value * value
    place = (row * tl.num_programs(1) + chunk) * 2 * C + channel
    tl.store(sums + place, tl.sum(first, 0), mask=channel < C)
    tl.store(sums + place + C, tl.sum(second, 0), mask=channel < C)


@triton.jit(do_not_specialize=["pixels", "chunks", "row_stride", "GROUP"])
def factors(
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
def normalise(
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

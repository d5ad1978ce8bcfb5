"""Convolution in float32 by Intel's tile instructions, in Python that Numba compiles. Images are NHWC.

Values are split into three bfloat16 whose sum they are, weights into as many as they need. All products that count are
exact and added in float32: the result is nearer to that of float64 than a float32 convolution's. Or both are rounded to
one bfloat16, which takes a third of the products. Every value is
summed in an order that the layer's shape alone decides, so its bits depend on no other row. A group normalisation
before it is done on the way, image by image, while they are in the cache.
"""

from __future__ import annotations

import numpy as np
from numba import carray, int64, njit

from service.engine import amx
from service.engine.addresses import address_of
from service.engine.kept import compiled
from service.engine.norm_kernels import find_factors, together_of
from service.engine.vectors import (
    WIDE,
    round_activated,
    round_all,
    round_normalised,
    split,
    split_activated,
    split_normalised,
)

PIECES = 3  # of a value, at most
CHANNELS = WIDE  # inputs of a tile, and outputs of two

# Sums of two by two tiles, 16 pixels by 16 channels each; two tiles of pixels, two of weights
zero_00, zero_01, zero_10, zero_11 = map(amx.zero, range(4))
load_00, load_01, load_10, load_11 = map(amx.load, range(4))
store_00, store_01, store_10, store_11 = map(amx.store, range(4))
load_pixels_0, load_pixels_1, load_weights_0, load_weights_1 = map(amx.load, range(4, 8))
dot_00, dot_01, dot_10, dot_11 = amx.dot(0, 4, 6), amx.dot(1, 4, 7), amx.dot(2, 5, 6), amx.dot(3, 5, 7)
configure, release = amx.configure, amx.release
ROWS, ROW_BYTES, BYTES = amx.ROWS, amx.ROW_BYTES, amx.BYTES


@njit(inline="always")
def _from_line(buffer, values):
    """So many of the values of `buffer`, from the start of a cache line on."""
    start = -buffer.ctypes.data % ROW_BYTES // buffer.itemsize
    return buffer[start : start + values]


@njit(inline="always")
def _fill(image, work, base, first, height, width, channels, pad, parts, factors, normalised, silu):
    """The pieces of an image, with a border of zeros, into planes of `work` (at `base`) from pixel `first` on.

    It is normalised on the way by `factors`, as `find_factors` leaves them, if they are to be used.
    """
    padded = width + 2 * pad
    for plane in range(work.shape[0]):
        work[plane, first : first + pad * padded + pad] = 0
        for y in range(pad, height + pad - 1):
            end = first + (y + 1) * padded
            work[plane, end - pad : end + pad] = 0
        work[plane, first + (height + pad) * padded - pad : first + (height + 2 * pad) * padded] = 0
    bytes_of_plane = work.shape[1] * ROW_BYTES
    apart = factors.strides[0]
    for y in range(height):
        to = base + (first + (y + pad) * padded + pad) * ROW_BYTES
        for x in range(width):
            source = image + 4 * (y * width + x) * channels
            mean = factors.ctypes.data
            for plane in range(0, work.shape[0], parts):
                high = to + plane * bytes_of_plane
                middle, low = high + bytes_of_plane, high + 2 * bytes_of_plane
                factor, shift = mean + apart, mean + 2 * apart
                if parts == 1:
                    if not normalised:
                        round_all(source, high)
                    elif silu:
                        round_activated(source, mean, factor, shift, high)
                    else:
                        round_normalised(source, mean, factor, shift, high)
                elif not normalised:
                    split(source, high, middle, low)
                elif silu:
                    split_activated(source, mean, factor, shift, high, middle, low)
                else:
                    split_normalised(source, mean, factor, shift, high, middle, low)
                source += 4 * CHANNELS
                mean += 4 * CHANNELS
            to += ROW_BYTES


@njit(inline="always")
def _multiply(pixels_0, pixels_1, weights_0, weights_1, planes, plane, side, padded, pieces, parts):
    """Adds to the sums all products of two tiles of pixels' neighbourhoods with two of output channels' weights.

    The four are addresses; planes are `plane` bytes long, their lines `padded` pixels.
    """
    for first in range(0, planes * plane, parts * plane):
        for line in range(first, first + side * padded * ROW_BYTES, padded * ROW_BYTES):
            for offset in range(line, line + side * ROW_BYTES, ROW_BYTES):
                for piece in range(pieces):
                    load_weights_0(weights_0, ROW_BYTES)
                    load_weights_1(weights_1, ROW_BYTES)
                    weights_0 += BYTES
                    weights_1 += BYTES
                    at = offset
                    for _ in range(parts - piece):  # the other products are below float32's last digit
                        load_pixels_0(pixels_0 + at, ROW_BYTES)
                        load_pixels_1(pixels_1 + at, ROW_BYTES)
                        dot_00()
                        dot_01()
                        dot_10()
                        dot_11()
                        at += plane


@njit(inline="always")
def _pixel(tile, per_image, lines, width, padded, high):
    """Where the neighbourhood of a tile's first pixel begins, in images with borders."""
    image, rest = tile // per_image, tile % per_image * ROWS
    return image * high * padded + (rest + rest // width * (padded - width) if lines else rest)


@njit(inline="always")
def _gather(strip, output, other, row, height, width, padded, channels, plus):
    """The lines of an image out of a strip whose lines are `padded` pixels long."""
    for y in range(height):
        to = (row * height + y) * width * channels
        start = y * padded * channels
        if plus:
            for i in range(width * channels):
                output[to + i] = strip[start + i] + other[to + i]
        else:
            for i in range(width * channels):
                output[to + i] = strip[start + i]


@compiled
def convolve(
    x, other, output, weights, constants,
    rows, together, height, width, channels, out_channels, side, pieces, parts, plus,
    normalised, norm_weight, norm_bias, scale, shift, groups, scale_stride, eps, modulated, silu,
):  # fmt: skip
    """The convolution of images, normalised before if they are to be.

    It takes addresses of `x` `[rows, height, width, channels]`, of `other` and of the output
    `[rows, height, width, out_channels]`, of packed weights and of constants; then rows, how many of them to take at
    once, height, width, channels, output channels, the kernel's side, pieces of a weight and of a value (three, or one:
    then it is rounded), and whether `other` is to be added. Whether `x` is to be normalised first, and for that what
    `service.engine.norm_kernels.group_norm` takes of it: addresses of weight, bias, scale and shift, groups, stride,
    eps, whether to modulate, whether SiLU follows.
    """
    pad = side // 2
    padded, high = width + 2 * pad, height + 2 * pad
    planes, plane = channels // CHANNELS * parts, together * high * padded + ROWS + side
    image, values = height * width * channels, rows * height * width * out_channels
    stride = 4 * out_channels
    block = (1 + side * side * channels // CHANNELS * pieces) * BYTES  # weights of 16 output channels, bias first
    lines = width % ROWS == 0  # then a tile is part of a line, else of a strip: an image's lines with their borders
    per_image = (height * (width if lines else padded) + ROWS - 1) // ROWS
    size = planes * plane * CHANNELS
    work = _from_line(np.empty(size + CHANNELS, np.uint16), size).reshape((planes, plane, CHANNELS))
    size = 0 if lines else together * per_image * ROWS * out_channels
    strips = _from_line(np.empty(size + ROWS, np.float32), size).reshape((together, size // together))
    pixels = together_of(height * width, channels)
    images = carray(x, (rows, height * width // pixels, pixels * channels), np.float32)
    factors = np.empty((5, pixels * channels), np.float32)
    weight, bias = carray(norm_weight, (channels,), np.float32), carray(norm_bias, (channels,), np.float32)
    scales, shifts = carray(scale, (rows, scale_stride), np.float32), carray(shift, (rows, scale_stride), np.float32)
    outputs, others = carray(output, (values,), np.float32), carray(other, (values,), np.float32)
    base, bank, ones = work.ctypes.data, address_of(weights), address_of(constants)
    configure(ones + BYTES)
    for row in range(0, rows, together):
        count = min(together, rows - row)
        for i in range(count):
            source = address_of(x) + 4 * (row + i) * image
            if normalised:
                find_factors(
                    images[row + i], weight, bias, scales[row + i], shifts[row + i],
                    height * width, channels, groups, eps, modulated, factors,
                )  # fmt: skip
            _fill(source, work, base, i * high * padded, height, width, channels, pad, parts, factors, normalised, silu)
        tiles = count * per_image
        into, begin = strips.ctypes.data, int64(0)
        if lines:
            first = row * height * width * stride
            into, begin = address_of(output) + first, address_of(other) + first
        for k in range(0, out_channels // ROWS, 2):
            for tile in range(0, tiles, 2):
                other_tile = min(tile + 1, tiles - 1)  # an odd one is made twice
                from_0 = _pixel(tile, per_image, lines, width, padded, high)
                from_1 = _pixel(other_tile, per_image, lines, width, padded, high)
                to_0 = tile * ROWS * stride + k * ROW_BYTES
                to_1 = other_tile * ROWS * stride + k * ROW_BYTES
                if lines and plus:
                    load_00(begin + to_0, stride)
                    load_01(begin + to_0 + ROW_BYTES, stride)
                    load_10(begin + to_1, stride)
                    load_11(begin + to_1 + ROW_BYTES, stride)
                else:
                    zero_00()
                    zero_01()
                    zero_10()
                    zero_11()
                weights_0 = bank + k * block
                weights_1 = weights_0 + block
                load_pixels_0(ones, ROW_BYTES)
                load_pixels_1(ones, ROW_BYTES)
                load_weights_0(weights_0, ROW_BYTES)
                load_weights_1(weights_1, ROW_BYTES)
                dot_00()
                dot_01()
                dot_10()
                dot_11()
                _multiply(
                    base + from_0 * ROW_BYTES, base + from_1 * ROW_BYTES, weights_0 + BYTES, weights_1 + BYTES,
                    planes, plane * ROW_BYTES, side, padded, pieces, parts,
                )  # fmt: skip
                store_00(into + to_0, stride)
                store_01(into + to_0 + ROW_BYTES, stride)
                store_10(into + to_1, stride)
                store_11(into + to_1 + ROW_BYTES, stride)
        if not lines:
            for i in range(count):
                _gather(strips[i], outputs, others, row + i, height, width, padded, out_channels, plus)
    release()

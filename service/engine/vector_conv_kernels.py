"""Convolution in float32 by vector instructions, in Python that Numba compiles. Images are NHWC.

Three by three pixels are by `service.engine.winograd` where tiles are worth it, else by products alone. Every value is
summed in an order that the layer's shape alone decides, so its bits depend on no other row. A group normalisation
before it is done on the way, image by image, while they are in the cache.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from service.engine.addresses import address_of
from service.engine.kept import compiled
from service.engine.norm_kernels import find_factors, together_of
from service.engine.vector_products import (
    CHAIN,
    COLUMNS,
    LINE,
    PANEL,
    ROWS,
    VALUE,
    address,
    multiply,
    multiply_added,
    multiply_biased,
    multiply_onto,
    room,
)
from service.engine.vectors import HALF, WIDE, copy, write_activated, write_normalised
from service.engine.winograd import SIDE, turn_back, turn_tile

VECTOR = VALUE * HALF  # bytes
SMALLEST, LARGEST = 1 << 16, 1 << 20  # bytes of turned tiles that are taken at once

turn_2, turn_4 = turn_tile(2), turn_tile(4)
back_2, back_4 = turn_back(2, plus=False), turn_back(4, plus=False)
back_2_plus, back_4_plus = turn_back(2, plus=True), turn_back(4, plus=True)


@compiled
def _fill_line(source, to, pixels, channels, factors, normalised, silu):
    """So many pixels, normalised by `factors` as `find_factors` leaves them if they are to be."""
    apart = factors.strides[0]
    for _ in range(pixels):
        mean = address(factors)
        for _ in range(0, channels, WIDE):
            if not normalised:
                copy(source, to)
            elif silu:
                write_activated(source, mean, mean + apart, mean + 2 * apart, to)
            else:
                write_normalised(source, mean, mean + apart, mean + 2 * apart, to)
            source += VALUE * WIDE
            to += VALUE * WIDE
            mean += VALUE * WIDE


@compiled
def _fill(source, image, height, width, channels, factors, normalised, silu):
    """An image into `image` `[high, wide, channels]`, with a border of zeros all around."""
    image[0] = 0
    image[height + 1 :] = 0
    for y in range(height):
        line = image[y + 1]
        line[0] = 0
        line[width + 1 :] = 0
        to = address(line[1])
        _fill_line(source + VALUE * y * width * channels, to, width, channels, factors, normalised, silu)


@compiled
def _keep(sums, output, other, row, y, x, first, plus):
    """Those of some pixels' sums of channels from `first` on that are in the image, perhaps plus `other`'s."""
    for dy in range(min(sums.shape[0], output.shape[1] - y)):
        for dx in range(min(sums.shape[1], output.shape[2] - x)):
            for c in range(sums.shape[2]):
                value = sums[dy, dx, c]
                if plus:
                    value += other[row, y + dy, x + dx, first + c]
                output[row, y + dy, x + dx, first + c] = value


@compiled
def _by_pixels(source, bank, biases, output, other, channels, depth, plus):
    """Products of single pixels' channels, at an address, with weights, plus biases and perhaps what `other` has."""
    pixels, out_channels = output.shape
    stride, out_stride = VALUE * channels, output.strides[0]
    few = room(ROWS * channels if pixels < ROWS else 0)
    sums = room(ROWS * COLUMNS).reshape((ROWS, COLUMNS))
    if pixels < ROWS:
        few[:] = 0
        _fill_line(source, address(few), pixels, channels, sums, False, False)
    for k in range(0, out_channels, COLUMNS):
        bias, added = address(biases[k:]), address(other[0, k:])
        to, step = address(output[0, k:]), out_stride
        if pixels < ROWS:
            # Numba frees an array after the last line that names it
            source, to, step = address(few), address(sums), PANEL
        for first in range(0, pixels, ROWS):
            at = max(0, min(first, pixels - ROWS))  # some of the last ones may be made twice
            of, into = source + at * stride, to + at * step
            panel = bank + k * depth * VALUE
            for start in range(0, depth, CHAIN):
                deep = min(CHAIN, depth - start)
                if start > 0:
                    multiply_onto(of, stride, panel, PANEL, into, step, deep)
                elif plus and pixels >= ROWS:
                    multiply_added(of, stride, panel, PANEL, into, step, deep, bias, added + at * step)
                else:
                    multiply_biased(of, stride, panel, PANEL, into, step, deep, bias)
                of += deep * VALUE
                panel += deep * PANEL
        if pixels < ROWS:
            for i in range(pixels):
                for c in range(COLUMNS):
                    output[i, k + c] = sums[i, c] + other[i, k + c] if plus else sums[i, c]


@compiled
def _by_neighbours(padded, bank, biases, outputs, others, row, depth, plus):
    """Products of pixels' neighbourhoods in images with borders, as they are."""
    count, line, pixel = padded.shape[0], padded.strides[1], padded.strides[2]
    height, width, out_channels = outputs.shape[1:]
    sums = room(ROWS * COLUMNS).reshape((1, ROWS, COLUMNS))
    to = address(sums)
    for k in range(0, out_channels, COLUMNS):
        for i in range(count):
            for y in range(height):
                for x in range(0, width, ROWS):
                    panel = bank + k * SIDE * SIDE * depth * VALUE
                    for c in range(COLUMNS):
                        sums[:, :, c] = biases[k + c]
                    for dy in range(SIDE):
                        for dx in range(SIDE):
                            of = address(padded) + i * padded.strides[0] + (y + dy) * line + (x + dx) * pixel
                            for start in range(0, depth, CHAIN):
                                deep = min(CHAIN, depth - start)
                                multiply_onto(of + start * VALUE, pixel, panel, PANEL, to, PANEL, deep)
                                panel += deep * PANEL
                    _keep(sums, outputs, others, row + i, y, x, k, plus)


@compiled
def _by_tiles(padded, bank, biases, outputs, others, row, depth, size, block, plus):
    """Winograd's products, of so many tiles at once, of images with borders."""
    count, line, pixel, channels = padded.shape[0], padded.strides[1], padded.strides[2], padded.shape[3]
    height, width, out_channels = outputs.shape[1:]
    out_line, out_pixel = outputs.strides[1], outputs.strides[2]
    wide = (width + size - 1) // size
    per_image = (height + size - 1) // size * wide
    numbers = (size + SIDE - 1) ** 2
    # Planes that are a power of two apart would share the cache's sets
    turned = room(numbers * (block * channels + LINE // VALUE)).reshape((numbers, -1))
    sums = room(numbers * (block * COLUMNS + LINE // VALUE)).reshape((numbers, -1))
    plane, sum_plane = turned.strides[0], sums.strides[0]
    edge = np.empty((size, size, HALF), np.float32)
    tiles = count * per_image
    for first in range(0, tiles, block):
        some = min(block, tiles - first)
        whole = (some + ROWS - 1) // ROWS * ROWS
        to = address(turned)
        for tile in range(first, first + some):
            place = tile % per_image
            source = address(padded[tile // per_image, place // wide * size, place % wide * size])
            for _ in range(0, channels, HALF):
                if size == 2:
                    turn_2(source, line, pixel, to, plane)
                else:
                    turn_4(source, line, pixel, to, plane)
                source += VECTOR
                to += VECTOR
        turned[:, some * channels : whole * channels] = 0
        panel = bank
        for k in range(0, out_channels, COLUMNS):
            for number in range(numbers):
                for start in range(0, depth, CHAIN):
                    deep = min(CHAIN, depth - start)
                    left = address(turned) + number * plane + start * VALUE
                    to = address(sums) + number * sum_plane
                    for _ in range(0, whole, ROWS):
                        if start == 0:
                            multiply(left, pixel, panel, PANEL, to, PANEL, deep)
                        else:
                            multiply_onto(left, pixel, panel, PANEL, to, PANEL, deep)
                        left += ROWS * pixel
                        to += ROWS * PANEL
                    panel += deep * PANEL
            source = address(sums)
            for tile in range(first, first + some):
                row_, place = row + tile // per_image, tile % per_image
                y, x = place // wide * size, place % wide * size
                if y + size <= height and x + size <= width:
                    to, of = address(outputs[row_, y, x, k:]), address(others[row_, y, x, k:])
                    for c in range(k, k + COLUMNS, HALF):
                        bias = address(biases[c:])
                        if size == 2:
                            if plus:
                                back_2_plus(source, sum_plane, bias, to, of, out_line, out_pixel)
                            else:
                                back_2(source, sum_plane, bias, to, of, out_line, out_pixel)
                        elif plus:
                            back_4_plus(source, sum_plane, bias, to, of, out_line, out_pixel)
                        else:
                            back_4(source, sum_plane, bias, to, of, out_line, out_pixel)
                        source += VECTOR
                        to += VECTOR
                        of += VECTOR
                    continue
                to = address(edge)
                for c in range(k, k + COLUMNS, HALF):
                    bias = address(biases[c:])
                    if size == 2:
                        back_2(source, sum_plane, bias, to, to, edge.strides[0], VECTOR)
                    else:
                        back_4(source, sum_plane, bias, to, to, edge.strides[0], VECTOR)
                    _keep(edge, outputs, others, row_, y, x, c, plus)
                    source += VECTOR


@compiled
def convolve(
    x, other, output, weights,
    rows, height, width, channels, out_channels, depth, side, size, plus,
    normalised, norm_weight, norm_bias, scale, shift, groups, scale_stride, eps, modulated, silu,
):  # fmt: skip
    """The convolution of images, normalised before if they are to be.

    It takes addresses of `x` `[rows, height, width, channels]`, of `other` and of the output
    `[rows, height, width, out_channels]` and of packed weights; then rows, height, width, channels and output channels
    (multiples of 32), how many of the channels count, the kernel's side (1 or 3), the size of tiles (2 or 4; 1 without)
    and whether `other` is to be added. Whether `x` is to be normalised first, and for that what
    `service.engine.norm_kernels.group_norm` takes of it: addresses of weight, bias, scale and shift, groups, stride,
    eps, whether to modulate, whether SiLU follows.
    """
    pixels = together_of(height * width, channels)
    images = carray(x, (rows, height * width // pixels, pixels * channels), np.float32)
    factors = np.empty((5, pixels * channels), np.float32)
    weight, bias = carray(norm_weight, (channels,), np.float32), carray(norm_bias, (channels,), np.float32)
    scales, shifts = carray(scale, (rows, scale_stride), np.float32), carray(shift, (rows, scale_stride), np.float32)
    outputs = carray(output, (rows, height, width, out_channels), np.float32)
    others = carray(other, (rows, height, width, out_channels), np.float32)
    biases = carray(weights, (out_channels,), np.float32)
    bank = address_of(weights) + VALUE * out_channels
    image = VALUE * height * width * channels  # bytes

    numbers = (size + SIDE - 1) ** 2
    high, wide = (height + size - 1) // size, (width + size - 1) // size
    # Weights are read anew for each block, and half of them are as much as they are worth
    cache = max(SMALLEST, min(LARGEST, VALUE * numbers * depth * out_channels // 2))
    block = max(1, min(cache // (numbers * channels * VALUE), rows * high * wide) // ROWS) * ROWS
    together = min(rows, (block + high * wide - 1) // (high * wide)) if side > 1 else 1
    pad = side // 2
    if side > 1 and size == 1:
        wide = (width + ROWS - 1) // ROWS * ROWS
    padded = room(together * (high * size + 2 * pad) * (wide * size + 2 * pad) * channels)
    padded = padded.reshape((together, high * size + 2 * pad, wide * size + 2 * pad, channels))
    for row in range(0, rows, together):
        count = min(together, rows - row)
        for i in range(count):
            if normalised:
                find_factors(
                    images[row + i], weight, bias, scales[row + i], shifts[row + i],
                    height * width, channels, groups, eps, modulated, factors,
                )  # fmt: skip
            source = address_of(x) + (row + i) * image
            if side > 1:
                _fill(source, padded[i], height, width, channels, factors, normalised, silu)
            elif normalised:
                _fill_line(source, address(padded), height * width, channels, factors, normalised, silu)
        if side == 1:
            of = address(padded) if normalised else address_of(x) + row * image
            form = (height * width, out_channels)
            _by_pixels(of, bank, biases, outputs[row].reshape(form), others[row].reshape(form), channels, depth, plus)
        elif size == 1:
            _by_neighbours(padded[:count], bank, biases, outputs, others, row, depth, plus)
        else:
            _by_tiles(padded[:count], bank, biases, outputs, others, row, depth, size, block, plus)

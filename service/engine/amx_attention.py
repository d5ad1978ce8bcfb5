"""Attention between pixels in float32 by Intel's tile instructions, in Python that Numba compiles.

As in convolutions (`service.engine.amx_conv_kernels`), products are those of values split into three bfloat16. Heads
are taken one after the other, so their bits depend on no other row.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from service.engine.addresses import address_of
from service.engine.amx_conv_kernels import (
    BYTES,
    PIECES,
    ROW_BYTES,
    ROWS,
    configure,
    dot_00,
    dot_01,
    dot_10,
    dot_11,
    load_pixels_0,
    load_pixels_1,
    load_weights_0,
    load_weights_1,
    release,
    store_00,
    store_01,
    store_10,
    store_11,
    zero_00,
    zero_01,
    zero_10,
    zero_11,
)
from service.engine.kept import compiled
from service.engine.norm_kernels import ONE, ZERO
from service.engine.vectors import (
    HALF,
    WIDE,
    greatest_of,
    keep_greater,
    split,
    split_exponentials,
    split_pairs,
    sum_of,
    transpose,
)

QUERIES = 2 * ROWS  # taken at once
LOWEST = np.float32(-np.inf)


@njit(inline="always")
def _split_rows(source, apart, pieces):
    """Rows of values at an address, so many bytes apart, in pieces `[3, width / 32, rows, 32]`."""
    base, plane, deep = pieces.ctypes.data, pieces.strides[0], pieces.strides[1]
    for row in range(pieces.shape[2]):
        for i in range(pieces.shape[1]):
            to = base + i * deep + row * ROW_BYTES
            split(source + row * apart + 4 * WIDE * i, to, to + plane, to + 2 * plane)


@njit(inline="always")
def _turn(pieces, tiles):
    """Pieces of keys `[3, width / 32, keys, 32]` in tiles `[3, width / 32, keys / 16, 16, 32]`.

    A tile's line has two values of 16 keys.
    """
    for tile in range(0, pieces.nbytes, BYTES):
        transpose(pieces.ctypes.data + tile, ROW_BYTES, tiles.ctypes.data + tile, ROW_BYTES)


@njit(inline="always")
def _interleave(source, apart, tiles):
    """Values `[keys, width]` at an address in tiles of pieces `[3, keys / 32, width / 16, 16, 32]`: two keys a line."""
    base, plane = tiles.ctypes.data, tiles.strides[0]
    for deep in range(tiles.shape[1]):
        for pair in range(ROWS):
            first = source + (deep * ROWS + pair) * 2 * apart
            for wide in range(tiles.shape[2]):
                to = base + deep * tiles.strides[1] + wide * BYTES + pair * ROW_BYTES
                split_pairs(first, first + apart, to, to + plane, to + 2 * plane)
                first += ROW_BYTES


@njit(inline="always")
def _multiply(rows, columns, output):
    """`output` `[32, N]` of pieces `[3, M / 32, 32, 32]` and of tiles `[3, M / 32, N / 16, 16, 32]`."""
    left, plane = rows.ctypes.data, rows.strides[0]
    to, stride = output.ctypes.data, output.strides[0]
    for wide in range(0, columns.shape[2], 2):
        zero_00()
        zero_01()
        zero_10()
        zero_11()
        for deep in range(columns.shape[1]):
            for piece in range(PIECES):
                tile = columns.ctypes.data + piece * columns.strides[0] + deep * columns.strides[1] + wide * BYTES
                load_weights_0(tile, ROW_BYTES)
                load_weights_1(tile + BYTES, ROW_BYTES)
                at = left + deep * rows.strides[1]
                for _ in range(PIECES - piece):  # the other products are below float32's last digit
                    load_pixels_0(at, ROW_BYTES)
                    load_pixels_1(at + BYTES, ROW_BYTES)
                    dot_00()
                    dot_01()
                    dot_10()
                    dot_11()
                    at += plane
        store_00(to + wide * ROW_BYTES, stride)
        store_01(to + (wide + 1) * ROW_BYTES, stride)
        store_10(to + wide * ROW_BYTES + ROWS * stride, stride)
        store_11(to + (wide + 1) * ROW_BYTES + ROWS * stride, stride)


@njit(inline="always")
def _weigh(scores, scale, lanes, shares, pieces):
    """Of rows of scores: exp of what each times `scale` is below the greatest, in pieces; one over the sum of these."""
    base, plane, deep = pieces.ctypes.data, pieces.strides[0], pieces.strides[1]
    for row in range(scores.shape[0]):
        source = scores[row].ctypes.data
        lanes[:] = LOWEST
        for i in range(pieces.shape[1]):
            keep_greater(lanes.ctypes.data, source + 4 * WIDE * i)
        most = greatest_of(lanes.ctypes.data)
        lanes[:] = ZERO
        for i in range(pieces.shape[1]):
            to = base + i * deep + row * ROW_BYTES
            split_exponentials(source + 4 * WIDE * i, most, scale, lanes.ctypes.data, to, to + plane, to + 2 * plane)
        shares[row] = ONE / sum_of(lanes.ctypes.data)


@compiled
def attend(qkv, output, constants, rows, pixels, heads, width):
    """Each pixel's mean of all pixels' values, weighted by softmax of query times key over the root of `width`.

    It takes addresses of queries, keys and values `[rows, pixels, 3, heads, width]`, of the output
    `[rows, pixels, heads, width]`, and of convolutions' constants. Pixels and `width` are multiples of 32.
    """
    images = carray(qkv, (rows, pixels, 3, heads, width), np.float32)
    outputs = carray(output, (rows, pixels, heads, width), np.float32)
    scale = ONE / np.sqrt(np.float32(width))
    key_pieces = np.empty((PIECES, width // WIDE, pixels, WIDE), np.uint16)
    key_tiles = np.empty((PIECES, width // WIDE, pixels // ROWS, ROWS, WIDE), np.uint16)
    value_tiles = np.empty((PIECES, pixels // WIDE, width // ROWS, ROWS, WIDE), np.uint16)
    query_pieces = np.empty((PIECES, width // WIDE, QUERIES, WIDE), np.uint16)
    weight_pieces = np.empty((PIECES, pixels // WIDE, QUERIES, WIDE), np.uint16)
    scores = np.empty((QUERIES, pixels + ROWS), np.float32)  # lines a power of two apart would share the cache's sets
    mixed = np.empty((QUERIES, width + ROWS), np.float32)
    shares, lanes = np.empty(QUERIES, np.float32), np.empty(HALF, np.float32)
    configure(address_of(constants) + BYTES)
    for row in range(rows):
        for head in range(heads):
            image = images[row, :, :, head]
            apart = image.strides[0]
            _split_rows(image[0, 1].ctypes.data, apart, key_pieces)
            _turn(key_pieces, key_tiles)
            _interleave(image[0, 2].ctypes.data, apart, value_tiles)
            for first in range(0, pixels, QUERIES):
                _split_rows(image[first, 0].ctypes.data, apart, query_pieces)
                _multiply(query_pieces, key_tiles, scores)
                _weigh(scores, scale, lanes, shares, weight_pieces)
                _multiply(weight_pieces, value_tiles, mixed)
                for i in range(QUERIES):
                    for j in range(width):
                        outputs[row, first + i, head, j] = mixed[i, j] * shares[i]
    release()

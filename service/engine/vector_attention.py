"""Attention between pixels in float32 by vector instructions, in Python that Numba compiles.

Heads are taken one after the other, so their bits depend on no other row.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from service.engine.kept import compiled
from service.engine.norm_kernels import ONE, ZERO
from service.engine.vector_products import (
    CHAIN,
    COLUMNS,
    PANEL,
    ROWS,
    VALUE,
    copy_columns,
    multiply,
    multiply_onto,
    room,
)
from service.engine.vectors import HALF, WIDE, exponentials, greatest_of, keep_greater, sum_of, transpose

LOWEST = np.float32(-np.inf)


@compiled
def _turn(source, apart, panels):
    """Keys at an address, so many bytes apart, as panels `[keys / COLUMNS, width, COLUMNS]`."""
    for panel in panels:
        for key in range(0, COLUMNS, HALF):
            for i in range(0, panel.shape[0], HALF):
                to = panel[i, key:].ctypes.data
                transpose(source + key * apart + VALUE * i, apart, to, PANEL)
        source += COLUMNS * apart


@compiled
def _pack(source, apart, panels):
    """Values at an address, so many bytes apart, as panels `[width / COLUMNS, keys, COLUMNS]`."""
    for panel in panels:
        for key in range(panel.shape[0]):
            copy_columns(source + key * apart, panel[key].ctypes.data)
        source += PANEL


@compiled
def _weigh(scores, scale, lanes, shares):
    """Of rows of scores, in their place: exp of what each times `scale` is below the greatest; one over their sum."""
    for row in range(scores.shape[0]):
        source = scores[row].ctypes.data
        lanes[:] = LOWEST
        for i in range(0, scores.shape[1], WIDE):
            keep_greater(lanes.ctypes.data, source + VALUE * i)
        most = greatest_of(lanes.ctypes.data)
        lanes[:] = ZERO
        for i in range(0, scores.shape[1], WIDE):
            exponentials(source + VALUE * i, most, scale, lanes.ctypes.data)
        shares[row] = ONE / sum_of(lanes.ctypes.data)


@compiled
def attend(qkv, output, rows, pixels, heads, width):
    """Each pixel's mean of all pixels' values, weighted by softmax of query times key over the root of `width`.

    It takes addresses of queries, keys and values `[rows, pixels, 3, heads, width]` and of the output
    `[rows, pixels, heads, width]`. Pixels and `width` are multiples of 32.
    """
    images = carray(qkv, (rows, pixels, 3, heads, width), np.float32)
    outputs = carray(output, (rows, pixels, heads, width), np.float32)
    scale = ONE / np.sqrt(np.float32(width))
    keys = room(pixels * width).reshape((pixels // COLUMNS, width, COLUMNS))
    values = room(pixels * width).reshape((width // COLUMNS, pixels, COLUMNS))
    scores = room(ROWS * pixels).reshape((ROWS, pixels))
    shares, lanes = np.empty(ROWS, np.float32), np.empty(HALF, np.float32)
    apart, out_apart, wide = images.strides[1], outputs.strides[1], scores.strides[0]
    for row in range(rows):
        for head in range(heads):
            _turn(images[row, 0, 1, head].ctypes.data, apart, keys)
            _pack(images[row, 0, 2, head].ctypes.data, apart, values)
            for first in range(0, pixels, ROWS):
                query = images[row, first, 0, head].ctypes.data
                for panel in range(keys.shape[0]):
                    to = scores.ctypes.data + panel * PANEL
                    multiply(query, apart, keys[panel].ctypes.data, PANEL, to, wide, width)
                _weigh(scores, scale, lanes, shares)
                for panel in range(values.shape[0]):
                    to = outputs[row, first, head].ctypes.data + panel * PANEL
                    of = values[panel].ctypes.data
                    for start in range(0, pixels, CHAIN):
                        left = scores.ctypes.data + VALUE * start
                        if start == 0:
                            multiply(left, wide, of, PANEL, to, out_apart, CHAIN)
                        else:
                            multiply_onto(left, wide, of, PANEL, to, out_apart, CHAIN)
                        of += CHAIN * PANEL
                for i in range(ROWS):
                    for j in range(width):
                        outputs[row, first + i, head, j] *= shares[i]

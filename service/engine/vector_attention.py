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
    address,
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
                to = address(panel[i, key:])
                transpose(source + key * apart + VALUE * i, apart, to, PANEL)
        source += COLUMNS * apart


@compiled
def _pack(source, apart, panels):
    """Values at an address, so many bytes apart, as panels `[width / COLUMNS, keys, COLUMNS]`."""
    for panel in panels:
        for key in range(panel.shape[0]):
            copy_columns(source + key * apart, address(panel[key]))
        source += PANEL


@compiled
def _weigh(scores, scale, lanes, shares):
    """Of rows of scores, in their place: exp of what each times `scale` is below the greatest; one over their sum."""
    for row in range(scores.shape[0]):
        source = address(scores[row])
        lanes[:] = LOWEST
        for i in range(0, scores.shape[1], WIDE):
            keep_greater(address(lanes), source + VALUE * i)
        most = greatest_of(address(lanes))
        lanes[:] = ZERO
        for i in range(0, scores.shape[1], WIDE):
            exponentials(source + VALUE * i, most, scale, address(lanes))
        shares[row] = ONE / sum_of(address(lanes))


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
            _turn(address(images[row, 0, 1, head]), apart, keys)
            _pack(address(images[row, 0, 2, head]), apart, values)
            for first in range(0, pixels, ROWS):
                query = address(images[row, first, 0, head])
                for panel in range(keys.shape[0]):
                    to, of = address(scores) + panel * PANEL, address(keys[panel])
                    for start in range(0, width, CHAIN):
                        if start == 0:
                            multiply(query, apart, of, PANEL, to, wide, CHAIN)
                        else:
                            multiply_onto(query + VALUE * start, apart, of, PANEL, to, wide, CHAIN)
                        of += CHAIN * PANEL
                _weigh(scores, scale, lanes, shares)
                for panel in range(values.shape[0]):
                    to = address(outputs[row, first, head]) + panel * PANEL
                    of = address(values[panel])
                    for start in range(0, pixels, CHAIN):
                        left = address(scores) + VALUE * start
                        if start == 0:
                            multiply(left, wide, of, PANEL, to, out_apart, CHAIN)
                        else:
                            multiply_onto(left, wide, of, PANEL, to, out_apart, CHAIN)
                        of += CHAIN * PANEL
                for i in range(ROWS):
                    for j in range(width):
                        outputs[row, first + i, head, j] *= shares[i]

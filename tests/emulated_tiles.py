"""A plugin for pytest: tile instructions by plain loops, so that kernels of tiles can be tested on any processor.

    NUMBA_CACHE_DIR=$(mktemp -d) python -m pytest -p tests.emulated_tiles tests/unit/test_amx_conv.py

Sums are rounded once for each instruction, which is less than processors do: that they are exact enough here is no
proof that others are. All threads have the same tiles, so kernels must not run side by side. What is compiled must
not be kept where a processor that has the instructions would find it.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
from numba import carray, int64, njit

from service.engine import amx
from service.engine.addresses import pointer_to

assert "NUMBA_CACHE_DIR" in os.environ, "what is compiled here is for this test alone"

TILES, ROWS, WORDS, PAIR = 8, amx.ROWS, amx.ROW_BYTES // 4, 2
HELD = np.zeros((TILES, ROWS, WORDS), np.float32)


def _tile(tile: int) -> int:
    return HELD[tile].ctypes.data


def zero(tile: int) -> Any:
    at = _tile(tile)

    @njit
    def instruction():
        carray(pointer_to(int64(at)), (ROWS * WORDS,), np.float32)[:] = 0

    return instruction


def load(tile: int) -> Any:
    at = _tile(tile)

    @njit
    def instruction(address, stride):
        held = carray(pointer_to(int64(at)), (ROWS, WORDS), np.int32)
        for row in range(ROWS):
            held[row] = carray(pointer_to(int64(address + row * stride)), (WORDS,), np.int32)

    return instruction


def store(tile: int) -> Any:
    at = _tile(tile)

    @njit
    def instruction(address, stride):
        held = carray(pointer_to(int64(at)), (ROWS, WORDS), np.int32)
        for row in range(ROWS):
            carray(pointer_to(int64(address + row * stride)), (WORDS,), np.int32)[:] = held[row]

    return instruction


@njit(inline="always")
def _value(bits):
    """Of a bfloat16."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def dot(sums: int, left: int, right: int) -> Any:
    to, one, two = _tile(sums), _tile(left), _tile(right)

    @njit
    def instruction():
        totals = carray(pointer_to(int64(to)), (ROWS, WORDS), np.float32)
        rows = carray(pointer_to(int64(one)), (ROWS, WORDS, PAIR), np.uint16)
        columns = carray(pointer_to(int64(two)), (WORDS, ROWS, PAIR), np.uint16)
        values = np.empty((WORDS, PAIR, ROWS), np.float64)
        for deep in range(WORDS):
            for column in range(ROWS):
                for i in range(PAIR):
                    values[deep, i, column] = _value(columns[deep, column, i])
        exact = np.empty(ROWS, np.float64)
        for row in range(ROWS):
            exact[:] = totals[row]
            for deep in range(WORDS):
                for i in range(PAIR):
                    value = np.float64(_value(rows[row, deep, i]))
                    for column in range(ROWS):
                        exact[column] += value * values[deep, i, column]
            for column in range(ROWS):
                totals[row, column] = exact[column]

    return instruction


@njit
def release():
    pass


@njit
def configure(address):
    pass


for name in ("zero", "load", "store", "dot", "release", "configure"):
    setattr(amx, name, globals()[name])
amx.available = cache(lambda: True)

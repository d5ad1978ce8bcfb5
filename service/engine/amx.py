"""Intel's tile instructions (AMX) for kernels in Python that Numba compiles.

A tile is a register of 16 rows of 64 bytes: 16 x 16 float32, or 16 x 32 bfloat16. `dot` adds to 16 x 16 sums the
products of 16 rows of 32 values with 32 rows of 16, the latter two by two side by side in a row of the tile. Products
are exact and sums float32. Numbers of tiles are part of an instruction, so there is a function for each.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import numpy as np
from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from service.engine.addresses import POINTER
from service.engine.vectors import has

BYTE = ir.IntType(8)

ROWS, ROW_BYTES = 16, 64
BYTES = ROWS * ROW_BYTES  # of a tile


# Linux, Documentation/arch/x86/xstate.rst: tiles are state that a process has to ask for, once
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18


@cache
def available() -> bool:
    """Whether this processor has the instructions for bfloat16, and Linux lets this process use them."""
    if sys.platform != "linux" or not has(("amx-tile", "amx-bf16", "avx512bw")):
        return False
    return _request() == 0


def _request() -> int:
    """0 when tiles may be used."""
    return int(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA))


def palette() -> np.ndarray:
    """What `configure` reads: all eight tiles as large as they get (Intel's manual, volume 1, 18.2)."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = ROW_BYTES
    config[48:56] = ROWS
    return config


def _call(builder, name, arguments):
    function = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.x86.{name}"), arguments)


def _plain(name, *tiles):
    """An instruction about `tiles` alone."""

    @intrinsic
    def instruction(typing):
        def generate(context, builder, signature, arguments):
            _call(builder, name, [ir.Constant(BYTE, tile) for tile in tiles])
            return context.get_dummy_value()

        return types.void(), generate

    return instruction


def zero(tile):
    """Clears a tile."""
    return _plain("tilezero", tile)


def dot(sums, left, right):
    """Adds to `sums` the products of `left` and `right`."""
    return _plain("tdpbf16ps", sums, left, right)


def _moving(name, tile):
    """An instruction that moves a tile from or to rows at an address, so many bytes apart."""

    @intrinsic
    def instruction(typing, address, stride):
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], POINTER)
            _call(builder, name, [ir.Constant(BYTE, tile), pointer, arguments[1]])
            return context.get_dummy_value()

        return types.void(int64, int64), generate

    return instruction


def load(tile):
    """Reads a tile."""
    return _moving("tileloadd64", tile)


def store(tile):
    """Writes a tile."""
    return _moving("tilestored64", tile)


release = _plain("tilerelease")


@intrinsic
def configure(typing, address):
    """Sets the tiles' sizes, for this thread, to those at an address."""

    def generate(context, builder, signature, arguments):
        _call(builder, "ldtilecfg", [builder.inttoptr(arguments[0], POINTER)])
        return context.get_dummy_value()

    return types.void(int64), generate

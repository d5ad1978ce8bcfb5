"""Products of matrices in float32 by vector instructions, for kernels in Python that Numba compiles."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from service.engine.kept import compiled
from service.engine.vectors import AVX512, FLOATS, HALF, LONG, Vectors, has

VALUE, LINE = 4, 64  # bytes: of a float32, of what a processor moves at once
# Of a block: as many registers of sums as keep two multipliers busy, half of those that there are
ROWS, COLUMNS = (8, 2 * HALF) if has(AVX512) else (4, HALF)
CHAIN = 32  # products that should be added one to the next: sums of many are made of sums, and lose no digits
PANEL = VALUE * COLUMNS  # bytes between the lines of a matrix so wide


@compiled
def address(array):
    """Of an array's first value: signed, for Numba makes a sum of signed and unsigned numbers a float."""
    return int64(array.ctypes.data)


@compiled
def room(values):
    """So many float32, from the start of a cache line on."""
    buffer = np.empty(values + LINE // VALUE, np.float32)
    start = -address(buffer) % LINE // VALUE
    return buffer[start : start + values]


@intrinsic
def copy_columns(typing, source, target):
    """`COLUMNS` values from one address to another."""

    def generate(context, builder, signature, arguments):
        vectors = Vectors(builder)
        for half in range(COLUMNS // HALF):
            vectors.store(vectors.load(arguments[0], half), arguments[1], half)
        return context.get_dummy_value()

    return types.void(int64, int64), generate


def _multiplication(kind):
    """`kind` says what sums begin with or get besides: nothing, the output, a bias, or a bias and another matrix."""
    extra = {"plain": 0, "onto": 0, "biased": 1, "added": 2}[kind]

    def generate(context, builder, signature, arguments):
        rows, row_stride, columns, column_stride, output, output_stride, depth, *rest = arguments
        vectors = Vectors(builder)
        lines = [builder.mul(output_stride, ir.Constant(LONG, row)) for row in range(ROWS)]
        halves = range(COLUMNS // HALF)
        sums = [[cgutils.alloca_once(builder, FLOATS) for _ in halves] for _ in range(ROWS)]
        for half in halves:
            begin = vectors.load(rest[0], half) if rest else ir.Constant(FLOATS, [0.0] * HALF)
            for row in sums:
                builder.store(begin, row[half])
        left = [builder.add(rows, builder.mul(row_stride, ir.Constant(LONG, row))) for row in range(ROWS)]
        bytes_of_columns = builder.mul(column_stride, depth)
        with cgutils.for_range(builder, depth) as loop:
            at = builder.add(columns, builder.mul(column_stride, loop.index))
            values = [vectors.load(at, half) for half in halves]
            if kind in ("plain", "onto"):
                for ahead in range(0, PANEL, LINE):
                    vectors.prefetch(builder.add(at, builder.add(bytes_of_columns, ir.Constant(LONG, ahead))))
            offset = builder.mul(loop.index, ir.Constant(LONG, VALUE))
            for address, row in zip(left, sums, strict=True):
                one = vectors.everywhere_at(builder.add(address, offset))
                for value, total in zip(values, row, strict=True):
                    builder.store(vectors.fma(one, value, builder.load(total)), total)
        for line, row in zip(lines, sums, strict=True):
            for half, total in enumerate(row):
                value = builder.load(total)
                if kind in ("onto", "added"):
                    address = output if kind == "onto" else rest[1]
                    value = builder.fadd(value, vectors.load(builder.add(address, line), half))
                vectors.store(value, builder.add(output, line), half)
        return context.get_dummy_value()

    if extra == 0:

        @intrinsic
        def instruction(typing, rows, row_stride, columns, column_stride, output, output_stride, depth):
            return types.void(*[int64] * 7), generate

    elif extra == 1:

        @intrinsic
        def instruction(typing, rows, row_stride, columns, column_stride, output, output_stride, depth, bias):
            return types.void(*[int64] * 8), generate

    else:

        @intrinsic
        def instruction(typing, rows, row_stride, columns, column_stride, output, output_stride, depth, bias, other):
            return types.void(*[int64] * 9), generate

    return instruction


multiply, multiply_onto, multiply_biased, multiply_added = map(_multiplication, ("plain", "onto", "biased", "added"))
"""`ROWS` of a matrix times `COLUMNS` of another, which may have any number of lines, the depth.

They take the address of the rows, the bytes from one to the next, the same of the columns' lines and of the output, and
the depth; then addresses of a bias and of what is added, lines as far apart as the output's. Sums are made in
the order of the depth, each product added without rounding it first. What follows the columns is brought near.
"""

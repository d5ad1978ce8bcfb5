"""Minimal filtering for convolutions of three by three pixels, by Winograd's way (Lavin and Gray 2015, section 4).

A tile of outputs, `size` pixels square, is made of `size + 2` pixels square. Both are turned by small matrices, and
between them each of the `(size + 2)^2` numbers has matrix products of its own over channels: 4 instead of 9 products
for each output where tiles are of 2, 2.25 where they are of 4. The matrices evaluate polynomials at points (Toom and
Cook); sums are the more exact the nearer the points' powers are to each other in size.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

from service.engine.vectors import FLOATS, HALF, LONG, Vectors

SIDE = 3  # of a convolution
POINTS = {2: (1.0,), 4: (0.75, 1.5)}  # besides zero and infinity, each with either sign


def matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What turns a line of inputs, of sums and of weights: `[N, N]`, `[size, N]`, `[N, 3]` with `N` of `size + 2`."""
    points = [0.0, *(sign * point for point in POINTS[size] for sign in (1, -1))]
    wide = size + SIDE - 1
    inputs, sums, weights = np.zeros((wide, wide)), np.zeros((size, wide)), np.zeros((wide, SIDE))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        inputs[i, : wide - 1] = np.poly(others)[::-1]
        sums[:, i] = point ** np.arange(size)
        weights[i] = point ** np.arange(SIDE) / np.prod([point - other for other in others])
    inputs[-1] = np.poly(points)[::-1]
    sums[-1, -1] = weights[-1, -1] = 1
    return inputs, sums, weights


def turned_weights(weight: np.ndarray, size: int) -> np.ndarray:
    """`[K, C, N, N]` as `[(size + N - 1)^2, C, K]`, in float64; of size 1 only rearranged."""
    turn = matrices(size)[2] if size > 1 else np.eye(weight.shape[2])
    outputs, inputs, side, _ = weight.shape
    values = weight.reshape(outputs * inputs, side * side).astype(np.float64)
    turned: np.ndarray = np.kron(turn, turn) @ values.T
    return turned.reshape(-1, outputs, inputs).swapaxes(1, 2)


def _sum(vectors, coefficients, values):
    """Of vectors, each times a number."""
    total = None
    for coefficient, value in zip(coefficients.tolist(), values, strict=True):
        if coefficient == 0:
            continue
        if total is None:
            total = value if coefficient == 1 else vectors.builder.fmul(value, _all(coefficient))
        elif abs(coefficient) == 1:
            total = vectors.builder.fadd(total, value) if coefficient > 0 else vectors.builder.fsub(total, value)
        else:
            total = vectors.fma(value, _all(coefficient), total)
    return total


def _all(value):
    return ir.Constant(FLOATS, [value] * HALF)


def _turned_line(vectors, matrix, values):
    """Of inputs: what two points of opposite sign make differs in the odd powers' sign."""
    builder, wide = vectors.builder, len(values)
    turned = [_sum(vectors, matrix[0], values)]
    for row in matrix[1:-1:2]:
        odd = np.arange(wide) % 2
        even_sum, odd_sum = _sum(vectors, row * (1 - odd), values), _sum(vectors, row * odd, values)
        turned += [builder.fadd(even_sum, odd_sum), builder.fsub(even_sum, odd_sum)]
    return [*turned, _sum(vectors, matrix[-1], values)]


def _line_turned_back(vectors, matrix, values):
    """Of sums, as above."""
    builder = vectors.builder
    pairs = list(zip(values[1:-1:2], values[2:-1:2], strict=True))
    added, taken = ([operation(*pair) for pair in pairs] for operation in (builder.fadd, builder.fsub))
    turned = []
    for power, row in enumerate(matrix):
        paired = taken if power % 2 else added
        turned.append(_sum(vectors, np.array([row[0], *row[1:-1:2], row[-1]]), [values[0], *paired, values[-1]]))
    return turned


def _square(turn, vectors, matrix, values):
    """`values` are lines of vectors: turns them across, then down."""
    lines = [turn(vectors, matrix, line) for line in values]
    columns = [turn(vectors, matrix, list(column)) for column in zip(*lines, strict=True)]
    return list(zip(*columns, strict=True))


def _place(builder, base, line, y, pixel, x):
    down = builder.mul(line, ir.Constant(LONG, y))
    return builder.add(base, builder.add(down, builder.mul(pixel, ir.Constant(LONG, x))))


def turn_tile(size):
    """Turns 16 channels of a tile's pixels into numbers.

    It takes addresses of the first pixel, bytes from a line and from a pixel to the next, and the address of the first
    number, bytes from it to the next.
    """
    matrix, wide = matrices(size)[0], size + SIDE - 1

    @intrinsic
    def instruction(typing, source, line, pixel, target, plane):
        def generate(context, builder, signature, arguments):
            source, line, pixel, target, plane = arguments
            vectors = Vectors(builder)
            values = [
                [vectors.load(_place(builder, source, line, y, pixel, x), 0) for x in range(wide)] for y in range(wide)
            ]
            for i, value in enumerate(sum(_square(_turned_line, vectors, matrix, values), ())):
                vectors.store(value, builder.add(target, builder.mul(plane, ir.Constant(LONG, i))), 0)
            return context.get_dummy_value()

        return types.void(*[int64] * 5), generate

    return instruction


def turn_back(size, plus):
    """Turns 16 channels of sums into a tile's pixels, plus a bias, and if `plus` what `other` has there.

    It takes the address of the first number, bytes from it to the next, addresses of the bias, of the first pixel in
    the output and in `other`, bytes from a line and from a pixel to the next.
    """
    matrix, wide = matrices(size)[1], size + SIDE - 1

    @intrinsic
    def instruction(typing, source, plane, bias, target, other, line, pixel):
        def generate(context, builder, signature, arguments):
            source, plane, bias, target, other, line, pixel = arguments
            vectors = Vectors(builder)
            values = [
                [
                    vectors.load(builder.add(source, builder.mul(plane, ir.Constant(LONG, y * wide + x))), 0)
                    for x in range(wide)
                ]
                for y in range(wide)
            ]
            added = vectors.load(bias, 0)
            for y, row in enumerate(_square(_line_turned_back, vectors, matrix, values)):
                for x, value in enumerate(row):
                    value = builder.fadd(value, added)
                    if plus:
                        value = builder.fadd(value, vectors.load(_place(builder, other, line, y, pixel, x), 0))
                    vectors.store(value, _place(builder, target, line, y, pixel, x), 0)
            return context.get_dummy_value()

        return types.void(*[int64] * 7), generate

    return instruction

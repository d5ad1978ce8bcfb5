"""Group normalisation for a CPU in two passes over memory, in Python that Numba compiles. Images are NHWC.

PyTorch's operators take seven passes and as many calls for it. A row is normalised by itself and by one thread, so
its bits depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import carray, types
from numba.core.types import boolean, float32, int64, void, voidptr
from numba.extending import overload

from service.engine.kept import FORM, compiled, kept

ENOUGH = 128  # values that make a vector loop worth its overhead: pixels of few channels are taken together
BLOCK = 64  # of these are summed by themselves, so that sums over many pixels lose no digits
SAMPLED = 8  # of these tell about where the values of a channel lie

ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)

# exp(x) = 2^n exp(r), |r| <= ln 2 / 2: the polynomial of Cephes' expf (Moshier), off by 2 of the last bit at most
LOG2_E = np.float32(1.44269504088896341)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
POLYNOMIAL = C7, C6, C5, C4, C3, C2 = tuple(
    map(
        np.float32,
        (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    )
)
LEAST, MOST = np.float32(-87), np.float32(88)  # where exp is a normal number
ROUNDER = np.float32(1.5 * 2**23)  # adding and subtracting it rounds to the nearest integer
BIAS, MANTISSA = np.int32(127), np.int32(23)  # of float32

SIGNATURE = void(*[voidptr] * 6, *[int64] * 5, float32, boolean, boolean)


@compiled
def exp(x):
    """To the last but one bit."""
    x = min(max(x, LEAST), MOST)
    n = (x * LOG2_E + ROUNDER) - ROUNDER
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    p = ((((C7 * r + C6) * r + C5) * r + C4) * r + C3) * r + C2
    power = np.int32((np.int32(n) + BIAS) << MANTISSA).view(np.float32)
    return (p * r * r + r + ONE) * power


def _value(stored):
    """Of a number as images have it, float32 or the bits of a bfloat16."""


@overload(_value, jit_options=FORM)
def _value_of(stored):
    if isinstance(stored, types.Float):
        return lambda stored: stored
    return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)


def _put(image, i, j, value):
    """`value` into an image, in whatever numbers it has."""


@overload(_put, jit_options=FORM)
def _put_into(image, i, j, value):
    if isinstance(image.dtype, types.Float):

        def put(image, i, j, value):
            image[i, j] = value

    else:

        def put(image, i, j, value):
            image[i, j] = _to_bfloat16(value)

    return put


@compiled
def _to_bfloat16(value):
    """To the nearest, to even of two; a NaN stays one."""
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(rounded) if value == value else np.uint16(0x7FC0)


@compiled
def _add_moments(x, centre, first, second):
    """Adds to `first` and `second` the sums over axis 0 of `x - centre` and its square."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            d = _value(x[i, j]) - centre[j]
            first[j] += d
            second[j] += d * d


@compiled
def _write(x, y, mean, factor, shift):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            _put(y, i, j, (_value(x[i, j]) - mean[j]) * factor[j] + shift[j])


@compiled
def _write_silu(x, y, mean, factor, shift):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            value = (_value(x[i, j]) - mean[j]) * factor[j] + shift[j]
            _put(y, i, j, value / (ONE + exp(-value)))


@compiled
def _repeat(values, channels):
    for i in range(channels, len(values)):
        values[i] = values[i - channels]


@compiled
def _gather(values, channels):
    for i in range(channels, len(values), channels):
        for c in range(channels):
            values[c] += values[i + c]


@compiled
def together_of(pixels, channels):
    """How many pixels are taken together."""
    together = 1
    while together * channels < ENOUGH and pixels % (2 * together) == 0:
        together *= 2
    return together


@compiled
def find_factors(values, weights, biases, scales, shifts, pixels, channels, groups, eps, modulated, scratch):
    """What makes an image `[high, wide]` normal: its values less `scratch[0]`, times `scratch[1]`, plus `scratch[2]`.

    A line of it, and of `scratch`, has the channels of one pixel or more; all else is `[channels]`.
    """
    high, wide = values.shape
    together, each = wide // channels, channels // groups
    count, share = np.float32(pixels), ONE / np.float32(each * pixels)
    centre, first, second, part, square = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    # Moments about where values lie: about zero, a variance far below the mean's square would lose its digits.
    centre[:] = ZERO
    sampled = min(SAMPLED, high)
    for i in range(sampled):
        line = (2 * i + 1) * high // (2 * sampled)  # of all parts of the image: a border's values may be far off
        for j in range(wide):
            centre[j] += _value(values[line, j])
    _gather(centre, channels)
    for c in range(channels):
        centre[c] /= np.float32(sampled * together)
    _repeat(centre, channels)
    first[:] = ZERO
    second[:] = ZERO
    for start in range(0, high, BLOCK):
        part[:] = ZERO
        square[:] = ZERO
        _add_moments(values[start : start + BLOCK], centre, part, square)
        for j in range(wide):
            first[j] += part[j]
            second[j] += square[j]
    _gather(first, channels)
    _gather(second, channels)
    for start in range(0, channels, each):
        total = ZERO
        for c in range(start, start + each):
            total += first[c] + count * (centre[c] - centre[start])
        mean = centre[start] + total * share
        total = ZERO
        for c in range(start, start + each):
            off = mean - centre[c]
            total += second[c] + off * (count * off - TWO * first[c])
        factor = ONE / np.sqrt(total * share + eps)
        for c in range(start, start + each):
            centre[c] = mean
            first[c] = factor
    for c in range(channels):
        first[c] *= weights[c]
        second[c] = biases[c]
    if modulated:
        for c in range(channels):
            factor = ONE + scales[c]
            first[c] *= factor
            second[c] = second[c] * factor + shifts[c]
    _repeat(centre, channels)
    _repeat(first, channels)
    _repeat(second, channels)


@compiled
def _normalise(
    kind,
    x, y, weight, bias, scale, shift, rows, pixels, channels, groups, stride, eps, modulated, silu,
):  # fmt: skip
    """As `group_norm` tells, for images of `kind`: float32, or the bits of bfloat16."""
    together = together_of(pixels, channels)
    wide, high = together * channels, pixels // together
    inputs, outputs = carray(x, (rows, high, wide), kind), carray(y, (rows, high, wide), kind)
    weights, biases = carray(weight, (channels,), np.float32), carray(bias, (channels,), np.float32)
    scales, shifts = carray(scale, (rows, stride), np.float32), carray(shift, (rows, stride), np.float32)
    scratch = np.empty((5, wide), np.float32)
    for row in range(rows):
        values = inputs[row]
        find_factors(
            values, weights, biases, scales[row], shifts[row], pixels, channels, groups, eps, modulated, scratch
        )
        if silu:
            _write_silu(values, outputs[row], scratch[0], scratch[1], scratch[2])
        else:
            _write(values, outputs[row], scratch[0], scratch[1], scratch[2])


def float32_norm(x, y, weight, bias, scale, shift, rows, pixels, channels, groups, stride, eps, modulated, silu):
    """As `group_norm` tells, of float32."""
    _normalise(
        np.float32,
        x, y, weight, bias, scale, shift, rows, pixels, channels, groups, stride, eps, modulated, silu,
    )  # fmt: skip


def _bfloat16(x, y, weight, bias, scale, shift, rows, pixels, channels, groups, stride, eps, modulated, silu):
    _normalise(
        np.uint16,
        x, y, weight, bias, scale, shift, rows, pixels, channels, groups, stride, eps, modulated, silu,
    )  # fmt: skip


@cache
def group_norm(dtype: str) -> Callable[..., None]:
    """The kernel for images of `dtype`, float32 or bfloat16, compiled now if this machine has not kept it.

    It takes addresses of `x` and of the output `[rows, pixels, channels]`, of float32 `weight` and `bias` `[channels]`,
    and of float32 `scale` and `shift` `[rows, channels]`; then rows, pixels, channels, groups, and the stride between
    rows of `scale`; eps; whether the result is to be times `1 + scale` plus `shift`; whether SiLU follows. Calls do not
    hold the interpreter's lock.
    """
    function = {"float32": float32_norm, "bfloat16": _bfloat16}[dtype]
    return kept(SIGNATURE, function)

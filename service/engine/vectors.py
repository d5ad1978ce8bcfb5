"""Vector instructions (AVX-512) on 32 values at once, for kernels in Python that Numba compiles.

Numba's own loops use half of a vector register's width.
"""

from __future__ import annotations

from llvmlite import ir
from numba import int64, types
from numba.core import cgutils
from numba.extending import intrinsic

from service.engine.cpu_kernels import BIAS, LEAST, LN_2_HIGH, LN_2_LOW, LOG2_E, MANTISSA, MOST, POLYNOMIAL, ROUNDER

WIDE = 32  # values
HALF = WIDE // 2  # of a register

INTEGER, FLOAT, SHORT = ir.IntType(32), ir.FloatType(), ir.IntType(16)
INTEGERS, FLOATS = ir.VectorType(INTEGER, HALF), ir.VectorType(FLOAT, HALF)
PAIRS, PIECE = ir.VectorType(SHORT, WIDE), ir.VectorType(SHORT, WIDE)
UPPER = ir.Constant(ir.VectorType(INTEGER, WIDE), list(range(1, 2 * WIDE, 2)))  # which halves of integers


def _all(value):
    return ir.Constant(FLOATS, [float(value)] * HALF)


class Vectors:
    """Code for half of the values at a time."""

    def __init__(self, builder) -> None:
        self.builder = builder

    def load(self, address, half):
        """16 values at a 4-byte address, the first or the second half."""
        at = self.builder.add(address, ir.Constant(address.type, 4 * HALF * half))
        return self.builder.load(self.builder.inttoptr(at, ir.PointerType(FLOATS)), align=4)

    def fma(self, a, b, c):
        """a b + c, rounded once."""
        name = f"llvm.fma.v{HALF}f32"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), name)
        return self.builder.call(function, [a, b, c])

    def silu(self, x):
        """x / (1 + exp(-x)), with exp as in `service.engine.cpu_kernels`."""
        builder = self.builder
        t = builder.fneg(x)
        for order, bound in ((">", LEAST), ("<", MOST)):
            t = builder.select(builder.fcmp_ordered(order, t, _all(bound)), t, _all(bound))
        n = builder.fsub(self.fma(t, _all(LOG2_E), _all(ROUNDER)), _all(ROUNDER))
        r = self.fma(n, _all(-LN_2_LOW), self.fma(n, _all(-LN_2_HIGH), t))
        p = _all(POLYNOMIAL[0])
        for coefficient in POLYNOMIAL[1:]:
            p = self.fma(p, r, _all(coefficient))
        p = builder.fadd(self.fma(builder.fmul(p, r), r, r), _all(1.0))
        exponent = builder.add(builder.fptosi(n, INTEGERS), ir.Constant(INTEGERS, [int(BIAS)] * HALF))
        power = builder.bitcast(builder.shl(exponent, ir.Constant(INTEGERS, [int(MANTISSA)] * HALF)), FLOATS)
        below = self.fma(p, power, _all(1.0))
        guess = self._reciprocal(below)  # to 14 digits; Newton's step doubles them
        return builder.fmul(x, builder.fmul(guess, self.fma(builder.fneg(below), guess, _all(2.0))))

    def _reciprocal(self, x):
        mask = ir.IntType(HALF)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(FLOATS, [FLOATS, FLOATS, mask]),
            "llvm.x86.avx512.rcp14.ps.512",
        )
        return self.builder.call(function, [x, ir.Constant(FLOATS, ir.Undefined), ir.Constant(mask, -1)])

    def split(self, halves, addresses):
        """Writes 32 values as three bfloat16 each, whose sum is exactly the value, to 2-byte addresses.

        Each is what is left, cut off after the eighth significant digit; a float32 has three times eight.
        """
        builder = self.builder
        upper = ir.Constant(INTEGERS, [0xFFFF0000] * HALF)
        for i, address in enumerate(addresses):
            bits = [builder.bitcast(half, INTEGERS) for half in halves]
            piece = builder.shuffle_vector(*(builder.bitcast(each, PAIRS) for each in bits), UPPER)
            builder.store(piece, builder.inttoptr(address, ir.PointerType(PIECE)), align=2)
            if i < len(addresses) - 1:
                kept = [builder.bitcast(builder.and_(each, upper), FLOATS) for each in bits]
                halves = [builder.fsub(half, each) for half, each in zip(halves, kept, strict=True)]


@intrinsic
def split(typing, source, high, middle, low):
    """32 values float32 at `source` in three pieces: see `Vectors.split`."""

    def generate(context, builder, signature, arguments):
        vectors = Vectors(builder)
        vectors.split([vectors.load(arguments[0], half) for half in range(2)], arguments[1:])
        return context.get_dummy_value()

    return types.void(*[int64] * 4), generate


def _split_normalised(silu):
    @intrinsic
    def instruction(typing, source, mean, factor, shift, high, middle, low):
        def generate(context, builder, signature, arguments):
            vectors = Vectors(builder)
            halves = []
            for half in range(2):
                x, mean, factor, shift = (vectors.load(address, half) for address in arguments[:4])
                x = vectors.fma(builder.fsub(x, mean), factor, shift)
                halves.append(vectors.silu(x) if silu else x)
            vectors.split(halves, arguments[4:])
            return context.get_dummy_value()

        return types.void(*[int64] * 7), generate

    return instruction


split_normalised = _split_normalised(silu=False)
"""As `split`, of (x - mean) factor + shift; all of them 32 values at an address."""

split_activated = _split_normalised(silu=True)
"""SiLU of that."""

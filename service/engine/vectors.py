"""Vector instructions on 32 values at once, for kernels in Python that Numba compiles.

Numba's own loops use half of the width of AVX-512's registers. Where registers are narrower, it takes several.
"""

from __future__ import annotations

from collections.abc import Iterable

from llvmlite import ir
from numba import config, float32, int64, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from service.engine.norm_kernels import BIAS, LEAST, LN_2_HIGH, LN_2_LOW, LOG2_E, MANTISSA, MOST, POLYNOMIAL, ROUNDER

WIDE = 32  # values
HALF = WIDE // 2  # of AVX-512's registers

AVX512, AVX2 = ("avx512f", "avx512bw"), ("avx2", "fma")  # features of a processor

LONG, INTEGER, FLOAT, SHORT = ir.IntType(64), ir.IntType(32), ir.FloatType(), ir.IntType(16)
NOTHING = -60.0  # exp of it is lost beside 1, and pieces of it are normal numbers, which are quicker than others

INTEGERS, FLOATS = ir.VectorType(INTEGER, HALF), ir.VectorType(FLOAT, HALF)
PAIRS, PIECE = ir.VectorType(SHORT, WIDE), ir.VectorType(SHORT, WIDE)
UPPER = ir.Constant(ir.VectorType(INTEGER, WIDE), list(range(1, 2 * WIDE, 2)))  # which halves of integers


def _all(value):
    return ir.Constant(FLOATS, [float(value)] * HALF)


def _integers(value):
    return ir.Constant(INTEGERS, [value] * HALF)


def has(names: Iterable[str]) -> bool:
    """Whether what Numba compiles for has all of these features: this processor, or what its environment asks for."""
    asked = getattr(config, "CPU_FEATURES", None)  # NUMBA_CPU_FEATURES
    features = (get_host_cpu_features() if asked is None else asked).split(",")
    return all(f"+{name}" in features for name in names)


class Vectors:
    """Code for half of the values at a time."""

    def __init__(self, builder) -> None:
        self.builder = builder

    def load(self, address, half):
        """16 values at a 4-byte address, the first or the second half."""
        at = self.builder.add(address, ir.Constant(address.type, 4 * HALF * half))
        return self.builder.load(self.builder.inttoptr(at, ir.PointerType(FLOATS)), align=4)

    def store(self, value, address, half):
        """As `load`, the other way."""
        at = self.builder.add(address, ir.Constant(address.type, 4 * HALF * half))
        self.builder.store(value, self.builder.inttoptr(at, ir.PointerType(FLOATS)), align=4)

    def prefetch(self, address):
        """Has the cache line of an address brought near."""
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(ir.IntType(8)), INTEGER, INTEGER, INTEGER])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        place = self.builder.inttoptr(address, ir.PointerType(ir.IntType(8)))
        self.builder.call(function, [place, *(ir.Constant(INTEGER, number) for number in (0, 2, 1))])

    def fma(self, a, b, c):
        """a b + c, rounded once."""
        name = f"llvm.fma.v{HALF}f32"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), name)
        return self.builder.call(function, [a, b, c])

    def exp(self, t, least=LEAST):
        """As in `service.engine.norm_kernels`, less its last product: what is to be multiplied by what."""
        builder = self.builder
        for order, bound in (("<", least), (">", MOST)):  # of a NaN neither holds: it stays one
            t = builder.select(builder.fcmp_ordered(order, t, _all(bound)), _all(bound), t)
        n = builder.fsub(self.fma(t, _all(LOG2_E), _all(ROUNDER)), _all(ROUNDER))
        r = self.fma(n, _all(-LN_2_LOW), self.fma(n, _all(-LN_2_HIGH), t))
        p = _all(POLYNOMIAL[0])
        for coefficient in POLYNOMIAL[1:]:
            p = self.fma(p, r, _all(coefficient))
        p = builder.fadd(self.fma(builder.fmul(p, r), r, r), _all(1.0))
        exponent = builder.add(builder.fptosi(n, INTEGERS), _integers(int(BIAS)))
        return p, builder.bitcast(builder.shl(exponent, _integers(int(MANTISSA))), FLOATS)

    def silu(self, x):
        """x / (1 + exp(-x))."""
        builder = self.builder
        below = self.fma(*self.exp(builder.fneg(x)), _all(1.0))
        if not has(AVX512):
            return builder.fdiv(x, below)
        guess = self._reciprocal(below)  # to 14 bits; Newton's step doubles them
        return builder.fmul(x, builder.fmul(guess, self.fma(builder.fneg(below), guess, _all(2.0))))

    def everywhere(self, value):
        """A number 16 times."""
        one = self.builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.Constant(INTEGER, 0))
        return self.builder.shuffle_vector(one, one, _integers(0))

    def everywhere_at(self, address):
        """The number at a 4-byte address 16 times."""
        place = self.builder.inttoptr(address, ir.PointerType(FLOAT))
        return self.everywhere(self.builder.load(place, align=4))

    def _reciprocal(self, x):
        mask = ir.IntType(HALF)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(FLOATS, [FLOATS, FLOATS, mask]),
            "llvm.x86.avx512.rcp14.ps.512",
        )
        return self.builder.call(function, [x, ir.Constant(FLOATS, ir.Undefined), ir.Constant(mask, -1)])

    def round(self, halves, address):
        """Writes 32 values as the nearest bfloat16, even ones of two, to a 2-byte address."""
        builder = self.builder
        bits = []
        for half in halves:
            whole = builder.bitcast(half, INTEGERS)
            last = builder.and_(builder.lshr(whole, _integers(16)), _integers(1))
            bits.append(builder.add(builder.add(whole, _integers(0x7FFF)), last))
        rounded = builder.shuffle_vector(*(builder.bitcast(each, PAIRS) for each in bits), UPPER)
        builder.store(rounded, builder.inttoptr(address, ir.PointerType(PIECE)), align=2)

    def split(self, halves, addresses):
        """Writes 32 values as three bfloat16 each, whose sum is exactly the value, to 2-byte addresses.

        Each is what is left, cut off after the eighth significant digit; a float32 has three times eight.
        """
        builder = self.builder
        upper = _integers(0xFFFF0000)
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


@intrinsic
def round_all(typing, source, target):
    """32 values float32 at `source` as the nearest bfloat16."""

    def generate(context, builder, signature, arguments):
        vectors = Vectors(builder)
        vectors.round([vectors.load(arguments[0], half) for half in range(2)], arguments[1])
        return context.get_dummy_value()

    return types.void(int64, int64), generate


def _normalised(builder, addresses, silu):
    vectors = Vectors(builder)
    halves = []
    for half in range(2):
        x, mean, factor, shift = (vectors.load(address, half) for address in addresses)
        x = vectors.fma(builder.fsub(x, mean), factor, shift)
        halves.append(vectors.silu(x) if silu else x)
    return halves


def _split_normalised(silu):
    @intrinsic
    def instruction(typing, source, mean, factor, shift, high, middle, low):
        def generate(context, builder, signature, arguments):
            Vectors(builder).split(_normalised(builder, arguments[:4], silu), arguments[4:])
            return context.get_dummy_value()

        return types.void(*[int64] * 7), generate

    return instruction


def _round_normalised(silu):
    @intrinsic
    def instruction(typing, source, mean, factor, shift, target):
        def generate(context, builder, signature, arguments):
            Vectors(builder).round(_normalised(builder, arguments[:4], silu), arguments[4])
            return context.get_dummy_value()

        return types.void(*[int64] * 5), generate

    return instruction


split_normalised, round_normalised = _split_normalised(silu=False), _round_normalised(silu=False)
"""As `split` and `round_all`, of (x - mean) factor + shift; all of them 32 values at an address."""

split_activated, round_activated = _split_normalised(silu=True), _round_normalised(silu=True)
"""SiLU of that."""


def _written(silu):
    @intrinsic
    def instruction(typing, source, mean, factor, shift, target):
        def generate(context, builder, signature, arguments):
            for half, value in enumerate(_normalised(builder, arguments[:4], silu)):
                Vectors(builder).store(value, arguments[4], half)
            return context.get_dummy_value()

        return types.void(*[int64] * 5), generate

    return instruction


write_normalised, write_activated = _written(silu=False), _written(silu=True)
"""The same two as float32."""


@intrinsic
def copy(typing, source, target):
    """32 values."""

    def generate(context, builder, signature, arguments):
        vectors = Vectors(builder)
        for half in range(2):
            vectors.store(vectors.load(arguments[0], half), arguments[1], half)
        return context.get_dummy_value()

    return types.void(int64, int64), generate


def _greater(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _add(builder, a, b):
    return builder.fadd(a, b)


def _reduced(operation):
    """16 values at an address to one, by an operation on two."""

    @intrinsic
    def instruction(typing, address):
        def generate(context, builder, signature, arguments):
            x = Vectors(builder).load(arguments[0], 0)
            for step in (8, 4, 2, 1):
                other = ir.Constant(INTEGERS, [lane ^ step for lane in range(HALF)])
                x = operation(builder, x, builder.shuffle_vector(x, x, other))
            return builder.extract_element(x, ir.Constant(INTEGER, 0))

        return float32(int64), generate

    return instruction


greatest_of, sum_of = _reduced(_greater), _reduced(_add)


@intrinsic
def keep_greater(typing, most, source):
    """Of 16 values at `most` and 32 at `source` the greater ones, at `most`."""

    def generate(context, builder, signature, arguments):
        vectors = Vectors(builder)
        greater = vectors.load(arguments[0], 0)
        for half in range(2):
            greater = _greater(builder, greater, vectors.load(arguments[1], half))
        builder.store(greater, builder.inttoptr(arguments[0], ir.PointerType(FLOATS)), align=4)
        return context.get_dummy_value()

    return types.void(int64, int64), generate


@intrinsic
def split_exponentials(typing, source, most, scale, sums, high, middle, low):
    """As `split`, of exp((x - most) scale), or what counts as nothing; what is split is added to 16 sums."""

    def generate(context, builder, signature, arguments):
        vectors = Vectors(builder)
        most, scale = map(vectors.everywhere, arguments[1:3])
        halves = []
        for half in range(2):
            x = builder.fmul(builder.fsub(vectors.load(arguments[0], half), most), scale)
            halves.append(builder.fmul(*vectors.exp(x, NOTHING)))
        total = builder.fadd(builder.fadd(*halves), vectors.load(arguments[3], 0))
        builder.store(total, builder.inttoptr(arguments[3], ir.PointerType(FLOATS)), align=4)
        vectors.split(halves, arguments[4:])
        return context.get_dummy_value()

    return types.void(int64, float32, float32, *[int64] * 4), generate


@intrinsic
def exponentials(typing, source, most, scale, sums):
    """Of 32 values, in their place: exp((x - most) scale), or what counts as nothing; they are added to 16 sums."""

    def generate(context, builder, signature, arguments):
        vectors = Vectors(builder)
        most, scale = map(vectors.everywhere, arguments[1:3])
        total = vectors.load(arguments[3], 0)
        for half in range(2):
            x = builder.fmul(builder.fsub(vectors.load(arguments[0], half), most), scale)
            x = builder.fmul(*vectors.exp(x, NOTHING))
            vectors.store(x, arguments[0], half)
            total = builder.fadd(total, x)
        vectors.store(total, arguments[3], 0)
        return context.get_dummy_value()

    return types.void(int64, float32, float32, int64), generate


@intrinsic
def split_pairs(typing, first, second, high, middle, low):
    """As `split`, of 16 values each at two addresses, side by side."""

    def generate(context, builder, signature, arguments):
        vectors = Vectors(builder)
        one, two = (vectors.load(address, 0) for address in arguments[:2])
        vectors.split([_both(builder, one, two, half) for half in range(2)], arguments[2:])
        return context.get_dummy_value()

    return types.void(*[int64] * 5), generate


def _both(builder, one, two, half):
    """The first or second half of two vectors' values in turn."""
    lanes = [lane // 2 + HALF * (lane % 2) for lane in range(half * HALF, (half + 1) * HALF)]
    return builder.shuffle_vector(one, two, ir.Constant(INTEGERS, lanes))


@intrinsic
def transpose(typing, source, source_apart, target, target_apart):
    """16 rows of 16 integers into 16 columns; rows at an address, and those that are made, are so many bytes apart."""

    def generate(context, builder, signature, arguments):
        places = [
            [
                builder.inttoptr(
                    builder.add(address, builder.mul(apart, ir.Constant(LONG, i))), ir.PointerType(INTEGERS)
                )
                for i in range(HALF)
            ]
            for address, apart in zip(arguments[::2], arguments[1::2], strict=True)
        ]
        rows = [builder.load(place, align=4) for place in places[0]]
        for step in (8, 4, 2, 1):  # blocks of this side beside the diagonal change places
            for i in (i for i in range(HALF) if not i & step):
                above, below = rows[i], rows[i + step]
                left = [lane - step + HALF if lane & step else lane for lane in range(HALF)]
                right = [lane + HALF if lane & step else lane + step for lane in range(HALF)]
                rows[i] = builder.shuffle_vector(above, below, ir.Constant(INTEGERS, left))
                rows[i + step] = builder.shuffle_vector(above, below, ir.Constant(INTEGERS, right))
        for row, place in zip(rows, places[1], strict=True):
            builder.store(row, place, align=4)
        return context.get_dummy_value()

    return types.void(*[int64] * 4), generate

"""Pointers as numbers, for kernels in Python that Numba compiles."""

from __future__ import annotations

from llvmlite import ir
from numba import int64, types
from numba.extending import intrinsic

LONG, POINTER = ir.IntType(64), ir.PointerType(ir.IntType(8))


@intrinsic
def address_of(typing, pointer):
    """A pointer as a number."""

    def generate(context, builder, signature, arguments):
        return builder.ptrtoint(arguments[0], LONG)

    return int64(types.voidptr), generate


@intrinsic
def pointer_to(typing, address):
    """A number as a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], POINTER)

    return types.voidptr(int64), generate

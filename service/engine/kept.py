"""Kernels in Python, compiled by Numba for this processor and kept on disk for the next start."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import PickleError
from types import ModuleType
from typing import Any

from numba import cfunc, njit

log = logging.getLogger(__name__)

FORM: Any = {"fastmath": {"contract"}, "error_model": "numpy"}

# What reading a kept kernel raises whose bits have changed: a pickle calls what its bytes say
DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(PickleError, RuntimeError, TypeError, ValueError, struct.error),
)

compiled = njit(**FORM)
"""A function that kernels call, compiled with the first of them."""


def kept(signature: Any, function: Callable[..., Any], *parts: ModuleType) -> Callable[..., Any]:
    """`function` compiled, now if this machine has not kept it. Calls do not hold the interpreter's lock.

    `parts` are the other modules that it takes functions from: Numba looks at a kernel's own file alone when it asks
    whether what it kept is still right.
    """
    compiling = partial(cfunc, signature, **FORM)
    kernel: Any
    try:
        function.__qualname__ = f"{function.__name__}_{_digest(parts)}"  # part of the name it is kept under
        kernel = compiling(cache=True)(function)
    except DAMAGE as error:  # nowhere to keep it, or nothing that can be used
        log.warning("compiling a kernel anew, as every start will: %s", error)
        kernel = compiling()(function)
    call: Callable[..., Any] = kernel.ctypes
    return call


def _digest(parts: tuple[ModuleType, ...]) -> str:
    files = (Path(str(part.__file__)).read_bytes() for part in parts)
    return hashlib.sha256(b"".join((repr(FORM).encode(), *files))).hexdigest()[:16]

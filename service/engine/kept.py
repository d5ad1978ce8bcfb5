"""Kernels in Python, compiled by Numba for this processor and kept on disk for the next start."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import PickleError
from types import ModuleType
from typing import Any

from numba import cfunc, njit

log = logging.getLogger(__name__)

FORM: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}

compiled = njit(**FORM)
"""A function that kernels call, compiled with the first of them."""


def kept(signature: Any, function: Callable[..., None], *parts: ModuleType) -> Callable[..., None]:
    """`function` compiled, now if this machine has not kept it. Calls do not hold the interpreter's lock.

    `parts` are the other modules that it takes functions from: Numba looks at a kernel's own file alone when it asks
    whether what it kept is still right.
    """
    compiling = partial(cfunc, signature, **FORM)
    kernel: Any
    try:
        if parts:
            function.__qualname__ = f"{function.__name__}_{_digest(parts)}"  # part of the name it is kept under
        kernel = compiling(cache=True)(function)
    except (OSError, RuntimeError, EOFError, PickleError) as error:  # nowhere to keep it, or nothing that can be used
        log.warning("compiling a kernel anew, as every start will: %s", error)
        kernel = compiling()(function)
    call: Callable[..., None] = kernel.ctypes
    return call


def _digest(parts: tuple[ModuleType, ...]) -> str:
    return hashlib.sha256(b"".join(Path(str(part.__file__)).read_bytes() for part in parts)).hexdigest()[:16]

"""Kernels in Python, compiled by Numba for this processor and kept on disk for the next start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pickle import PickleError
from typing import Any

from numba import cfunc

log = logging.getLogger(__name__)


def kept(signature: Any, function: Callable[..., None]) -> Callable[..., None]:
    """`function` compiled, now if this machine has not kept it. Calls do not hold the interpreter's lock."""
    compiling = partial(cfunc, signature, fastmath={"contract"}, error_model="numpy")
    compiled: Any
    try:
        compiled = compiling(cache=True)(function)
    except (OSError, RuntimeError, EOFError, PickleError) as error:  # nowhere to keep it, or nothing that can be used
        log.warning("compiling a kernel anew, as every start will: %s", error)
        compiled = compiling()(function)
    call: Callable[..., None] = compiled.ctypes
    return call

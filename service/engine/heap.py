"""Memory that the network's layers hand back stays with the process.

glibc asks the kernel for memory for every large tensor and gives it back after the layer: the kernel clears each page
again and again, while the lanes wait for each other (mallopt(3); PyTorch's tuning guide recommends other allocators
for this, which must be preloaded).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
NEVER = 2**31 - 1  # bytes
OLDEST = 32 * 2**20  # bytes: the most that glibc took for the last of these until 2.35
HEAP = 64 * 2**20  # bytes of a heap of a thread: such as are wholly free stay too


def give_back() -> None:
    """Hands the kernel what is free now, as after loading, when weights have been there in several forms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def keep_freed_memory() -> bool:
    """From now on; whether the C library can. The process then keeps the most that it has ever used at once."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or not (mallopt(M_MMAP_THRESHOLD, NEVER) or mallopt(M_MMAP_THRESHOLD, OLDEST)):
        return False  # to set the others alone would switch off glibc's own way of asking less often
    return bool(mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_TOP_PAD, HEAP))

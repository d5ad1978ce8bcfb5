"""Processor time of a server on the same machine."""

from __future__ import annotations

import contextlib

__all__ = ["cpu_of_tree"]


def cpu_of_tree(pid: int) -> float:
    """Seconds, user and system, that a process and all its living descendants have used. Needs `psutil`."""
    import psutil  # type: ignore[import-untyped]

    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
    return total

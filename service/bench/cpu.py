"""Processor time of a server on the same machine."""

from __future__ import annotations

import contextlib

__all__ = ["cpu_of_tree"]


def cpu_of_tree(pid: int) -> float | None:
    """Seconds, user and system, that a process and its living descendants have used; None without such a process.

    Needs `psutil`, which the `bench` extra brings.
    """
    import psutil  # type: ignore[import-untyped]

    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total

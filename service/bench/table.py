"""Results as a table for people."""

from __future__ import annotations

from service.bench.report import Result

__all__ = ["heading", "row", "stages_line"]

_COLUMNS = ("requests/s", "images/s", "image-steps/s", "in time/s", "p50 ms", "p95 ms", "p99 ms", "failed")
_FIRST = 24


def heading() -> str:
    """The names of the columns."""
    return "load".ljust(_FIRST) + "".join(name.rjust(len(name) + 2) for name in _COLUMNS)


def row(result: Result) -> str:
    """One run."""
    if result.loop == "closed":
        load = "1 client that waits" if result.clients == 1 else f"{result.clients} clients that wait"
    else:
        load = f"{result.rate:.1f} arrivals/s"
    rates = (result.requests_per_second, result.images_per_second, result.image_steps_per_second, result.goodput)
    times = result.latency
    shown = [f"{rate:.1f}" for rate in rates]
    shown += ["-"] * 3 if times is None else [f"{each:.0f}" for each in (times.p50, times.p95, times.p99)]
    failed = ", ".join(f"{count} {reason}" for reason, count in sorted(result.failures.items()))
    cells = "".join(cell.rjust(len(name) + 2) for cell, name in zip(shown, _COLUMNS, strict=False))
    return load.ljust(_FIRST) + cells + (f"  {failed}" if failed else "0".rjust(len(_COLUMNS[-1]) + 2))


def stages_line(result: Result) -> str | None:
    """Where the time goes by the server's own account; None when it gives none."""
    means = {name: times.mean for name, times in result.stages.items() if times is not None and name != "total"}
    if not means:
        return None
    return "mean ms of a request: " + ", ".join(f"{name} {mean:.1f}" for name, mean in means.items())

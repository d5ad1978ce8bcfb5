"""A workload from saturation down: what the server can do, then how long it takes at shares of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.bench.load import run_closed, run_open
from service.bench.report import Result
from service.bench.workloads import Workload

__all__ = ["Options", "clients_for", "sweep"]


@dataclass(frozen=True, slots=True)
class Options:
    """How every run of a sweep is made."""

    seconds: float = 10.0
    warm_up: float = 2.0
    deadline: float = 1.0
    timeout: float = 60.0
    loads: tuple[float, ...] = (0.5, 0.7, 0.9)  # shares of the requests per second at saturation
    api_key: str | None = None
    server_pid: int | None = None


def clients_for(workload: Workload, largest_batch: int) -> int:
    """Clients that saturate a server whose largest forward has so many images."""
    return workload.clients if workload.background else max(workload.clients, 2 * largest_batch)


def sweep(
    url: str, workload: Workload, clients: int, options: Options, tell: Callable[[Result], None]
) -> Sequence[Result]:
    """A closed loop, then an open loop for each load; each result is told as soon as it is there.

    There is no open loop when the closed one had no request answered.
    """
    closed = run_closed(
        url,
        workload,
        clients,
        options.seconds,
        options.warm_up,
        deadline=options.deadline,
        api_key=options.api_key,
        timeout=options.timeout,
        server_pid=options.server_pid,
    )
    tell(closed)
    results = [closed]
    for load in options.loads if closed.requests_per_second else ():
        result = run_open(
            url,
            workload,
            load * closed.requests_per_second,
            options.seconds,
            options.warm_up,
            options.deadline,
            api_key=options.api_key,
            timeout=options.timeout,
            server_pid=options.server_pid,
        )
        tell(result)
        results.append(result)
    return results

"""A small search: the best settings of a peer for each workload, one knob after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.peers.systems import LAYOUTS, Choice

Rates = dict[str, float]  # image-steps per second of each workload


def small_search(
    workloads: Sequence[str], batches: Sequence[int], waits: Sequence[float], measure: Callable[[Choice], Rates]
) -> dict[str, Choice]:
    """The settings with the highest rate for each workload.

    Tries the ways to share the cores at the first batch size and wait, then the other batch sizes at what was best
    for either workload, then the other waits.
    """
    tried: dict[Choice, Rates] = {}

    def best(workload: str) -> Choice:
        return max(tried, key=lambda choice: tried[choice][workload])

    def attempt(choices: Sequence[Choice]) -> None:
        for choice in choices:
            if choice not in tried:
                tried[choice] = measure(choice)

    attempt([Choice(threads, workers, batches[0], waits[0]) for threads, workers in LAYOUTS])
    for each in [best(workload) for workload in workloads]:
        attempt([replace(each, max_batch=size) for size in batches])
    for each in [best(workload) for workload in workloads]:
        attempt([replace(each, wait_ms=wait) for wait in waits])
    return {workload: best(workload) for workload in workloads}

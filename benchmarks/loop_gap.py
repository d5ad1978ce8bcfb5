"""What the engine's loop leaves a device idle for between two steps: `python -m benchmarks.loop_gap`.

The loop is the real one, the device is not: it is a clock that is busy for so long after each step that it was asked
for. Asking takes its time on the CPU, as kernels that are started one by one do. So it tells what waiting the loop
adds, on a machine without a GPU, and nothing of a GPU itself: `gpu_check` measures that.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from service.engine.loop import EngineLoop
from service.engine.network import Mark, Network
from service.engine.protocol import Finished, FromEngine
from service.engine.request import Sample, SizeTime
from service.engine.runner import ModelRunner
from service.models.folder import load_info
from service.models.info import ModelInfo
from tests.tiny import tiny_model

ROWS, ROUNDS = 32, 60

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClockDevice:
    """As `service.engine.network.Network`: works off steps of `step` seconds, each asked for in `launch` seconds."""

    lanes = None
    device = torch.device("cpu")

    def __init__(self, step: float, launch: float) -> None:
        self._step, self._launch = step, launch
        self._free = self.busy = 0.0

    def __call__(self, x: Tensor, time_: Tensor, class_labels: Tensor | None, /) -> Tensor:
        asked = time.perf_counter() + self._launch
        while time.perf_counter() < asked:
            pass
        self._free = max(asked, self._free) + self._step
        self.busy += self._step
        return x

    def mark(self) -> Mark:
        done = self._free
        return Mark(lambda: time.sleep(max(0.0, done - time.perf_counter())), lambda: time.perf_counter() >= done)

    def copy_out(self, value: Tensor) -> Callable[[], Tensor]:
        return lambda: value

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        return [function(item) for item in items]


def measure(info: ModelInfo, step: float, launch: float, steps: int) -> None:
    """Prints what share of the time the device had work."""
    device, said = ClockDevice(step, launch), list[FromEngine]()
    sizes = (SizeTime(1, step), SizeTime(ROWS, step))
    loop = EngineLoop([ModelRunner(info, cast(Network, device), sizes, 1e9)], lambda *more: said.extend(more))
    sigmas = info.schedule.sigmas(info.schedule.evenly_spaced(steps))
    count = ROWS * ROUNDS // steps
    loop.submit(
        Sample(id=i, request=i, client="", model=info.name, seed=i, class_label=i % 10, sigmas=sigmas)
        for i in range(count)
    )
    began = time.perf_counter()
    while loop.step():
        pass
    taken = time.perf_counter() - began
    assert sum(isinstance(each, Finished) for each in said) == count
    gap = (taken - device.busy) * step / device.busy
    print(f"{steps} steps an image: busy {device.busy / taken:.3f} of the time, {1e3 * gap:.2f} ms idle a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=float, default=29.0, help="ms of the device for a step of 32 (an H200's)")
    parser.add_argument("--launch", type=float, default=3.0, help="ms of the CPU to ask for one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        info = load_info(tiny_model(Path(folder) / "model"), "tiny")
        for steps in (1, 4):
            measure(info, 1e-3 * args.step, 1e-3 * args.launch, steps)


if __name__ == "__main__":
    main()

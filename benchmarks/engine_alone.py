"""The engine's own forward, without HTTP, in a process of its own: `python -m benchmarks.engine_alone`.

Loads and certifies the model as the engine does, then waits. For each line with a number of seconds on standard
input it steps full batches for so long and prints one line of JSON. Between lines it uses no processor.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time

import torch

from service.engine.process import NICENESS
from service.engine.protocol import EngineConfig
from service.engine.request import Sample
from service.engine.runner import ModelRunner
from service.engine.worker import prepare_runner, resolve, settle
from service.models.info import ModelInfo
from service.models.places import load_infos

CALIBRATION = 1.0  # seconds of each size


def full_batch(info: ModelInfo, runner: ModelRunner, size: int) -> float:
    """Seconds of one forward of `size` one-step rows, the drawing of their noise and the copy of pixels left out."""
    sigmas = (info.schedule.sigma_max,)
    labels = [i % info.num_classes if info.num_classes else None for i in range(size)]
    rows = runner.begin(
        [Sample(id=i, request=i, client="", model=info.name, seed=i, class_label=labels[i], sigmas=sigmas)
         for i in range(size)]
    )  # fmt: skip
    began = time.perf_counter()
    runner.step(rows)
    runner.mark().wait()
    return time.perf_counter() - began


def rate(info: ModelInfo, runner: ModelRunner, size: int, seconds: float) -> float:
    """Image-steps per second of forward time, for about `seconds`."""
    count, forward, end = 0, 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        forward += full_batch(info, runner, size)
        count += size
    return count / forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    os.nice(NICENESS)  # as the engine
    info = next(iter(load_infos(args.model).values()))
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        config = resolve(EngineConfig(args.device, args.dtype, cores, 64, 1.0, True, cache, args.compile))
        settle(config)
        runner, status = prepare_runner(info, config)
        sizes = [each.size for each in status.batch_sizes]
        rates = {size: rate(info, runner, size, CALIBRATION) for size in sizes}
        best = max(rates, key=lambda size: rates[size])
        print(json.dumps({"best": best, "image_steps_per_second": rates}), flush=True)
        for line in sys.stdin:
            found = rate(info, runner, best, float(line))
            print(json.dumps({"image_steps_per_second": found}), flush=True)


if __name__ == "__main__":
    main()

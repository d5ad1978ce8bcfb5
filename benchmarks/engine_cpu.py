"""The engine's own step against the stock `ConsistencyModelPipeline` on the CPU, in interleaved rounds of one run.

Prints images per second of every row and its ratio to the stock pipeline: to its best batch size for batches, to its
single image for single images. Ratios are medians over rounds, so what else the machine does weighs less. Run it as
`python -m benchmarks.engine_cpu [--model NAME_OR_FOLDER] [--compile] [--rounds 5] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from diffusers import ConsistencyModelPipeline
from diffusers.utils import logging

from service.cache import default_cache_dir
from service.engine.protocol import EngineConfig
from service.engine.request import Sample
from service.engine.runner import ModelRunner
from service.engine.worker import prepare_runner, settle
from service.models.info import ModelInfo
from service.models.places import load_infos

STOCK_SIZES = (1, 2, 4, 8, 12, 16, 32)
OUR_SIZES = (1, 2, 4, 8, 16, 32)


class Stock:
    """The pipeline in a process of its own, with its allocator and threads as they are."""

    def __init__(self, model: str) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _load_stock, (model,))

    def seconds(self, count: int, least: float) -> float:
        """As `seconds_of`."""
        return self._process.submit(_stock_seconds, count, least).result()

    def close(self) -> None:
        self._process.shutdown()


def _load_stock(model: str) -> None:
    global _make_stock
    _make_stock = stock(next(iter(load_infos(model).values())))


def _stock_seconds(count: int, least: float) -> float:
    return seconds_of(_make_stock, count, least)


def stock(info: ModelInfo) -> Callable[[int], None]:
    """Makes images with the pipeline as its documentation says, one network step, arrays out."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipeline = ConsistencyModelPipeline.from_pretrained(info.path)
    pipeline.set_progress_bar_config(disable=True)

    def make(count: int) -> None:
        labels = [i % info.num_classes for i in range(count)] if info.num_classes else None
        generator = [torch.Generator().manual_seed(i) for i in range(count)]
        pipeline(count, labels, num_inference_steps=1, generator=generator, output_type="np")

    return make


def ours(info: ModelInfo, runner: ModelRunner) -> Callable[[int], None]:
    """Makes images as the engine does, one network step, pixels out."""
    sigmas = (info.schedule.sigma_max,)

    def sample(i: int) -> Sample:
        label = i % info.num_classes if info.num_classes else None
        return Sample(id=i, request=i, client="", model=info.name, seed=i, class_label=label, sigmas=sigmas)

    def make(count: int) -> None:
        with torch.inference_mode():
            rows = runner.begin([sample(i) for i in range(count)])
            runner.step(rows)
            runner.collect([row.x[0] for row in rows], ["uint8"] * count).wait()

    return make


def seconds_of(make: Callable[[int], None], count: int, least: float) -> float:
    """Seconds of one call, the mean of as many as take `least` seconds, one at least."""
    calls, taken, began = 0, 0.0, time.perf_counter()
    while not calls or taken < least:
        make(count)
        calls, taken = calls + 1, time.perf_counter() - began
    return taken / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="avatars-32", help="bundled name or diffusers folder")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--compile", action="store_true", help="the engine's network compiled; kept as the server keeps it"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.5, help="seconds of each row in each round")
    parser.add_argument("--largest", type=int, default=32, help="largest batch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    cores = len(os.sched_getaffinity(0))
    info = next(iter(load_infos(options.model).values()))
    with tempfile.TemporaryDirectory() as empty, torch.inference_mode():
        cache = str(default_cache_dir()) if options.compile else empty

        def runner(*, batch_invariant: bool) -> ModelRunner:
            config = EngineConfig(
                "cpu", options.dtype, cores, options.largest, 1e9, batch_invariant, cache, options.compile
            )
            settle(config)
            return prepare_runner(info, config)[0]

        alike, free = runner(batch_invariant=True), runner(batch_invariant=False)
    pipeline, engine = Stock(options.model), partial(seconds_of, ours(info, alike))
    rows: dict[tuple[str, int], Callable[[int, float], float]] = {
        ("stock", size): pipeline.seconds for size in STOCK_SIZES if size <= options.largest
    }
    rows |= {("engine", size): engine for size in OUR_SIZES if size <= options.largest}
    rows[("engine, not invariant", 1)] = partial(seconds_of, ours(info, free))
    for (_, size), seconds in rows.items():
        seconds(size, 0.0)

    rates: dict[tuple[str, int], list[float]] = {row: [] for row in rows}
    for _ in range(options.rounds):
        for row, seconds in rows.items():
            rates[row].append(row[1] / seconds(row[1], options.least))
    pipeline.close()

    best = max((row for row in rows if row[0] == "stock"), key=lambda row: median(rates[row]))
    machine = f"{cores} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    kind = options.dtype + (", compiled" if options.compile else "")
    print(f"{info.name}, {kind}, {machine}; stock is best at {best[1]}")
    print(f"{'':24}{'images':>7}{'img/s':>9}{'ms':>9}{'ratio':>8}")
    table = []
    for row, measured in rates.items():
        against = ("stock", 1) if row[1] == 1 else best
        ratio = median(mine / theirs for mine, theirs in zip(measured, rates[against], strict=True))
        rate = median(measured)
        print(f"{row[0]:24}{row[1]:>7}{rate:>9.1f}{1e3 * row[1] / rate:>9.1f}{ratio:>8.2f}")
        table.append({"what": row[0], "images": row[1], "images_per_second": measured, "ratio": ratio})
    if options.json:
        facts = {"model": info.name, "dtype": kind, "cores": cores, "torch": torch.__version__}
        options.json.write_text(json.dumps(facts | {"load": os.getloadavg(), "rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()

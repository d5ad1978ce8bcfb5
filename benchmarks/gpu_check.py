"""Checks and measures the engine on a GPU within ten minutes, and prints a short table.

`python -m benchmarks.gpu_check [--minutes 10] [--model FOLDER] [--device cuda:0] [--json FILE]`. Without a model it
makes the ImageNet-64 layout (296 M parameters) with random weights. Every part stands alone: one that fails says so
and the next one runs; parts that would not fit into the time left are left out, and named.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from service.engine.certification import certify
from service.engine.cuda import CudaNetwork
from service.engine.forward import ProjectedForward, build_forward
from service.engine.loop import EngineLoop
from service.engine.protocol import EngineConfig, Finished, FromEngine
from service.engine.request import Sample, SizeTime
from service.engine.runner import ModelRunner
from service.engine.worker import settle
from service.models.folder import load_info
from service.models.info import ModelInfo
from service.models.loader import load_unet
from tests.tiny import tiny_model

IMAGENET_64: dict[str, Any] = {
    "block_out_channels": [192, 384, 576, 768],
    "layers_per_block": 3,
    "down_block_types": ["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3],
    "up_block_types": [*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "attention_head_dim": 64,
    "num_class_embeds": 1000,
    "norm_num_groups": 32,
    "attn_norm_num_groups": 32,
    "sample_size": 64,
}
GFLOP_PER_IMAGE_STEP = 207.0  # of the ImageNet-64 layout
STOCK_SIZES = (1, 8, 32, 64, 128, 256)
KERNELS = 14  # of the longest, shown


class Check:
    """Everything the parts share, and what they found."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.began = time.monotonic()
        self.seconds = 60 * options.minutes
        self.device = torch.device(options.device)
        self.folder = folder
        self.imagenet = options.model is None
        self.place: Path = options.model or folder / "imagenet64"
        self.largest: int = options.largest
        self.found: dict[str, Any] = {}
        self.info: ModelInfo
        self.network: CudaNetwork
        self.sizes: tuple[SizeTime, ...]

    def say(self, name: str, value: object, unit: str = "") -> None:
        self.found[name] = value
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{name:58} {shown:>12} {unit}", flush=True)

    def part(self, work: Callable[[Check], None], least: float) -> None:
        """Runs a part if `least` seconds are left for it."""
        left = self.seconds - (time.monotonic() - self.began)
        if left < least:
            self.say(work.__name__, "left out", f"{left:.0f} s left, {least:.0f} s needed")
            return
        try:
            work(self)
        except Exception:
            traceback.print_exc()
            self.say(work.__name__, "FAILED")

    def seconds_of(self, run: Callable[[], object], least: float = 1.0) -> float:
        """Seconds of one call, with the device's work done."""
        run()
        torch.cuda.synchronize()
        calls, began, taken = 0, time.perf_counter(), 0.0
        while taken < least:
            run()
            torch.cuda.synchronize()
            calls, taken = calls + 1, time.perf_counter() - began
        return taken / calls

    def inputs(self, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        x = torch.randn(count, *self.info.latent_shape, generator=torch.Generator().manual_seed(1)).to(self.device)
        labels = torch.arange(count) % self.info.num_classes if self.info.num_classes else None
        return x, torch.linspace(-1500, 1095, count), labels


def machine(check: Check) -> None:
    """What is measured on, and its matrix-multiply peak."""
    check.say("device", torch.cuda.get_device_name(check.device))
    check.say("torch", torch.__version__)
    side = 8192
    a, b = (torch.randn(side, side, device=check.device, dtype=torch.bfloat16) for _ in range(2))
    check.say("bfloat16 matrix multiply, measured peak", 2e-12 * side**3 / check.seconds_of(lambda: a @ b), "TFLOP/s")


def engine(check: Check) -> None:
    """Loads, captures, certifies; the admitted sizes and their times."""
    if check.imagenet:
        tiny_model(check.place, "imagenet_like", **IMAGENET_64)
    check.info = load_info(check.place, "model")
    settle(config_of(check))
    began = time.perf_counter()
    forward = build_forward(load_unet(check.info, check.device), check.info, check.device, torch.bfloat16)
    check.say("load", time.perf_counter() - began, "s")
    check.say("form", forward.plan)
    began = time.perf_counter()
    check.network = network_of(check, forward)
    check.say("capture", time.perf_counter() - began, "s")
    began = time.perf_counter()
    certificate, check.sizes = certify(check.info, check.network, config_of(check))
    check.say("certify", time.perf_counter() - began, "s")
    check.say("refused sizes", [trial.way.rows for trial in certificate.trials if not trial.exact])
    for measured in certificate.times:
        check.say(f"step of {measured.size}", 1e3 * measured.seconds, "ms")
    best = max(certificate.times, key=lambda each: each.size / each.seconds)
    rate = best.size / best.seconds
    check.say("best image-steps per second", rate, f"at {best.size}")
    if check.imagenet:
        peak = check.found["bfloat16 matrix multiply, measured peak"]
        check.say("share of the measured peak", 1e-3 * GFLOP_PER_IMAGE_STEP * rate / peak)


def network_of(check: Check, forward: Any) -> CudaNetwork:
    info = check.info
    return CudaNetwork(forward, info.latent_shape, info.class_conditional, check.device, check.largest)


def config_of(check: Check) -> EngineConfig:
    return EngineConfig(str(check.device), "bfloat16", 1, check.largest, 1e9, True, str(check.folder / "cache"))


def unbound(check: Check) -> None:
    """The same without batch invariance: the network in PyTorch's own kernels, which may change with the batch."""
    with mock.patch("service.engine.forward.tile_norms_of", return_value=None):
        forward = build_forward(load_unet(check.info, check.device), check.info, check.device, torch.bfloat16)
    network = network_of(check, forward)
    times = {}
    for size in network.sizes(check.largest):
        inputs = check.inputs(size)
        times[size] = check.seconds_of(partial(network, *inputs), 0.3)
        check.say(f"without invariance, step of {size}", 1e3 * times[size], "ms")
    best = max(size / seconds for size, seconds in times.items())
    ours = {measured.size: measured.seconds for measured in check.sizes}
    check.say("what invariance costs, one image", ours[1] / times[1])
    check.say("what invariance costs, at the best size", best / max(size / ours[size] for size in ours))


def bits(check: Check) -> None:
    """A row's bits alone, in batches of every count, and in another order."""
    x, time_, labels = check.inputs(24)
    alone = torch.cat(
        [
            check.network(x[i : i + 1], time_[i : i + 1], None if labels is None else labels[i : i + 1])
            for i in range(24)
        ]
    )
    same = all(
        torch.equal(check.network(x[:n], time_[:n], None if labels is None else labels[:n]), alone[:n])
        for n in (2, 3, 5, 8, 13, 24)
    )
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    there = order.to(check.device)
    mixed = check.network(x[there], time_[order], None if labels is None else labels[order])
    check.say("bits of a row never depend on the batch", same and torch.equal(mixed, alone[there]))


def parity(check: Check) -> None:
    """Pictures against the stock network in float32 on the same device."""
    stock = load_unet(check.info, check.device)
    x, time_, labels = check.inputs(16)
    there = None if labels is None else labels.to(check.device)
    exact = stock(x, time_.to(check.device), class_labels=there).sample
    ours = check.network(x, time_, labels)
    apart = (ours - exact).abs() / exact.abs().max()
    check.say("largest difference from float32, of the range", float(apart.max()))
    check.say("share of values within 1/128 of the range", float((apart <= 1 / 128).float().mean()))


def no_readback(check: Check) -> None:
    """A step of the runner under CUDA's own check for calls that wait for the device."""
    runner = ModelRunner(check.info, check.network, check.sizes, 1e9)
    rows = runner.begin(list(samples(check, 8, steps=3)))
    runner.step(rows)
    torch.cuda.synchronize()
    with sync_is_an_error():
        denoised = runner.step(rows)
        collected = runner.collect(list(denoised), ["uint8"] * 8)
    collected.wait()
    check.say("a step reads nothing back", True)


@contextmanager
def sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def samples(check: Check, count: int, steps: int = 1) -> Iterator[Sample]:
    sigmas = check.info.schedule.sigmas(check.info.schedule.evenly_spaced(steps))
    for i in range(count):
        label = i % check.info.num_classes if check.info.num_classes else None
        yield Sample(id=i, request=i, client="", model="model", seed=i, class_label=label, sigmas=sigmas)


def saturation(check: Check) -> None:
    """Images per second of the whole engine loop: noise, steps, pixels, events."""
    best = max(check.sizes, key=lambda each: each.size / each.seconds)
    finished: list[FromEngine] = []
    loop = EngineLoop([ModelRunner(check.info, check.network, check.sizes, 1e9)], lambda *more: finished.extend(more))
    for name, steps in (("one step", 1), ("four steps", 4)):
        for timed in (False, True):
            count = best.size * (16 if timed else 1)
            finished.clear()
            loop.submit(samples(check, count, steps))
            began = time.perf_counter()
            while loop.step():
                pass
            taken = time.perf_counter() - began
            assert sum(isinstance(message, Finished) for message in finished) == count
        check.say(f"engine loop, {name}, image-steps per second", count * steps / taken)
        check.say(f"  {name}, of what its forward alone reaches", count * steps / taken * best.seconds / best.size)
    loop.submit(samples(check, best.size * 8))
    began = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        while loop.step():
            pass
        taken = time.perf_counter() - began
    busy = 1e-6 * sum(each.device_time_total for each in profile.key_averages())
    check.say("  of the time the device is busy", busy / taken)


def alone(check: Check) -> None:
    """One image at a time, one step, through the whole engine loop."""
    finished: list[FromEngine] = []
    loop = EngineLoop([ModelRunner(check.info, check.network, check.sizes, 1e9)], lambda *more: finished.extend(more))

    def one() -> None:
        loop.submit(samples(check, 1))
        while loop.step():
            pass

    check.say("engine loop, one image at a time", 1 / check.seconds_of(one), "images/s")


def kernels(check: Check) -> None:
    """Where the device's time goes at the best size: the kernels that take the most of it."""
    best = max(check.sizes, key=lambda each: each.size / each.seconds).size
    inputs = check.inputs(best)
    check.network(*inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        check.network(*inputs)
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda each: -each.device_time_total)
    total = sum(each.device_time_total for each in found)
    check.say(f"kernels of a step of {best}", 1e-3 * total, "ms")
    for each in found[:KERNELS]:
        name = f"  {each.count:4} x {each.key[:48]}"
        check.say(name, 100 * each.device_time_total / total, "% of it")


def stock_pipeline(check: Check) -> None:
    """The stock pipeline in float16, one step, at several sizes."""
    from diffusers import ConsistencyModelPipeline

    pipeline = ConsistencyModelPipeline.from_pretrained(check.place, torch_dtype=torch.float16).to(check.device)
    pipeline.set_progress_bar_config(disable=True)
    rates = {}
    for size in STOCK_SIZES:

        def make(size: int = size) -> None:
            labels = [i % check.info.num_classes for i in range(size)] if check.info.num_classes else None
            generator = [torch.Generator().manual_seed(i) for i in range(size)]
            pipeline(size, labels, num_inference_steps=1, generator=generator, output_type="np")

        try:
            rates[size] = size / check.seconds_of(make)
        except torch.cuda.OutOfMemoryError:
            break
        check.say(f"stock float16 pipeline, batch {size}", rates[size], "images/s")
    ours = check.found.get("engine loop, one step, image-steps per second")
    single = check.found.get("engine loop, one image at a time")
    if ours and single:
        check.say("engine, one image at a time, over stock at batch 1", single / rates[1])
        check.say("engine at its best size over stock at batch 1", ours / rates[1])
        check.say("engine over stock at its best batch", ours / max(rates.values()))


def compiled(check: Check) -> None:
    """Whether torch.compile would pay, at the best size."""
    best = max(check.sizes, key=lambda each: each.size / each.seconds).size
    x, time_, labels = check.inputs(best)
    unet = load_unet(check.info, check.device)
    began = time.perf_counter()
    forward = ProjectedForward(unet, check.info, check.device, torch.bfloat16, compiled=True)
    check.largest = best
    network = network_of(check, forward)
    check.say("compile and capture", time.perf_counter() - began, "s")
    quick = check.seconds_of(lambda: network(x, time_, labels))
    usual = check.seconds_of(lambda: check.network(x, time_, labels))
    check.say(f"torch.compile over graphs alone, {best} rows", usual / quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--model", type=Path, help="diffusers folder")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--largest", type=int, default=64, help="largest batch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here")
    torch.cuda.set_device(options.device)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        check = Check(options, Path(folder))
        check.part(machine, 5)
        check.part(engine, 60)
        for work, least in (
            (bits, 10),
            (parity, 10),
            (unbound, 15),
            (no_readback, 5),
            (saturation, 10),
            (alone, 3),
            (kernels, 5),
            (stock_pipeline, 30),
        ):
            check.part(work, least)
        check.part(compiled, 180)
    if options.json:
        options.json.write_text(json.dumps(check.found, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()

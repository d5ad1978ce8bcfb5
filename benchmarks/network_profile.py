"""Where the time of a network forward and of the steps around it goes, in this process and without a server.

Where a forward is one call (`service.engine.program`), its steps are done one by one for that. Elsewhere
kinds are those of `torch.profiler`'s operators: each one's own time goes to the scope it ran in (a group norm, an
attention block, a convolution by a kernel with the norm before it), else to what its name says; the
interpreter's time between operators is a kind of its own. The profiler slows small operators more than large ones, so
its shares are taken of a time measured without it. CPU only.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from service.engine.amx_conv import AmxConv2d
from service.engine.blocks import QuickAttention
from service.engine.cpu import ROWS, rows_of_part, team_size
from service.engine.embedding import Key
from service.engine.forward import Forward, ProjectedForward, build_forward
from service.engine.heap import keep_freed_memory
from service.engine.kernel_conv import KernelConv2d
from service.engine.lanes import Lanes
from service.engine.norm import KernelGroupNorm
from service.engine.program import Programs
from service.engine.protocol import EngineConfig, Finished, Submit, decode_from_engine, decode_to_engine, frame
from service.engine.request import Sample, SampleResult
from service.engine.scheduler import Scheduler
from service.engine.steps import ATTEND, CONVOLVE, NORMALISE
from service.engine.vector_conv import VectorConv2d
from service.engine.worker import prepare_runner
from service.models.info import ModelInfo
from service.models.loader import load_unet

CONV, NORM, ATTENTION, OTHER, INTERPRETER = (
    "convolution",
    "norm and activation",
    "attention and linear",
    "other operators",
    "interpreter",
)
KINDS: Final = (CONV, NORM, ATTENTION, OTHER, INTERPRETER)
BY_NAME: Final = (  # the first whose words are in an operator's name
    (CONV, ("conv",)),
    (NORM, ("norm", "silu", "sigmoid")),
    (ATTENTION, ("attention", "addmm", "::mm", "bmm", "linear", "softmax", "baddbmm")),
)
FORWARD: Final = "forward"
SIDE: Final = 1024  # of the matrices whose product tells the peak
PROFILED: Final = 5  # forwards


def mean_ms(run: Callable[[], object], seconds: float) -> float:
    """Mean milliseconds of a call, of as many as take `seconds`; one before does not count."""
    run()
    calls, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or not calls:
        run()
        calls += 1
    return 1e3 * taken / calls


def matmul_peak(dtype: torch.dtype, threads: int, lanes: int, seconds: float) -> float:
    """GFLOP/s of products of square matrices, by `lanes` side by side with `threads` each; the best of five goes."""
    a = torch.randn(SIDE, SIDE).to(dtype)
    workers = Lanes(lanes)

    def some() -> None:
        for _ in range(4):
            torch.mm(a, a)

    try:
        best = min(mean_ms(lambda: workers.run([some] * lanes, threads), seconds / 5) for _ in range(5))
    finally:
        workers.close()
    return lanes * 4 * 2 * SIDE**3 / best / 1e6


def products_of(forward: Forward, dtype: torch.dtype) -> tuple[torch.dtype, float]:
    """The type of the products that a network in `dtype` is made of, and how many stand for one of a convolution.

    Several by tile instructions, of bfloat16; less than one where Winograd's tiles spare some.
    """
    modules = list(forward._body.modules()) if isinstance(forward, ProjectedForward) else []
    by_tiles = [sum(each._parts - i for i in range(each._pieces)) for each in modules if isinstance(each, AmxConv2d)]
    if by_tiles:
        return torch.bfloat16, max(by_tiles)
    sizes = [each._size for each in modules if isinstance(each, VectorConv2d) and each._size > 1]
    return (torch.float32, (min(sizes) + 2) ** 2 / (3 * min(sizes)) ** 2) if sizes else (dtype, 1)


def gflop_per_image_step(info: ModelInfo) -> dict[str, float]:
    """GFLOP (a multiplication and an addition are two) of one row by `CONV` and `ATTENTION`, as diffusers runs it."""
    unet = load_unet(info, torch.device("cpu"))
    labels = torch.tensor([0]) if info.class_conditional else None
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        unet(torch.zeros(1, *info.latent_shape), torch.tensor([1.0]), class_labels=labels)
    counts = counter.get_flop_counts()["Global"]
    conv = sum(count for operator, count in counts.items() if "conv" in str(operator))
    return {CONV: conv / 1e9, ATTENTION: (sum(counts.values()) - conv) / 1e9}


def inputs(info: ModelInfo, forward: Forward, rows: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Noise and what the forward needs beside it."""
    keys: list[Key] = [(1.0, i % info.num_classes if info.num_classes else None) for i in range(rows)]
    return torch.randn(rows, *info.latent_shape), forward.prepare(keys)


def install_scopes() -> None:
    """Names for the profiler what it would not see, or not tell apart."""
    for kind, owner, name in (
        (NORM, KernelGroupNorm, "normalised"),
        (CONV, KernelConv2d, "_convolve"),
        (ATTENTION, QuickAttention, "forward"),
    ):
        setattr(owner, name, scoped(kind, getattr(owner, name)))


def scoped(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` in a scope."""

    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with record_function(kind):
            return function(*args, **kwargs)

    return inside


def kind_of(event: Any) -> str:
    """The kind of a profiler event: of the scope around it, else by its name or that of the operators around it."""
    around = []
    while event is not None and event.name != FORWARD:
        around.append(event.name)
        event = event.cpu_parent
    scopes = [name for name in around if name in (NORM, CONV, ATTENTION)]
    if scopes:
        return scopes[0] if scopes[0] == NORM else scopes[-1]  # a block's linear layers are convolutions of one pixel
    found = [kind for name in around for kind, words in BY_NAME if any(word in name for word in words)]
    return found[0] if found else OTHER


def shares(run: Callable[[], object]) -> dict[str, float]:
    """The share of each of `KINDS` in a call, 0 to 1."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            with record_function(FORWARD):
                run()
    spent: defaultdict[str, float] = defaultdict(float)
    for event in profiler.events():
        between = event.name in (FORWARD, ATTENTION)  # a norm is one call that the profiler does not see
        inside = event.name == FORWARD or _has_ancestor(event, FORWARD)
        if inside:
            spent[INTERPRETER if between else kind_of(event)] += event.self_cpu_time_total
    whole = sum(spent.values())
    return {kind: spent[kind] / whole for kind in KINDS}


def shares_of(forward: Forward, given: tuple[Tensor, tuple[Tensor, ...]]) -> dict[str, float]:
    """The share of each of `KINDS` in a forward, 0 to 1."""
    programs = forward.programs if isinstance(forward, ProjectedForward) else None
    if programs is None:
        return shares(lambda: forward.run(*given))
    return step_shares(programs, lambda: forward.run(*given), len(given[0]))


def step_shares(programs: Programs, run: Callable[[], object], rows: int) -> dict[str, float]:
    """As `shares`, of a forward of so many rows that is one call; what is around its steps is the interpreter's."""
    run()
    steps, do = programs.bound(rows).steps, programs.instructions.runner()
    kinds = [{CONVOLVE: CONV, ATTEND: ATTENTION, NORMALISE: NORM}.get(int(step[0]), OTHER) for step in steps]
    for i in [i for i, kind in enumerate(kinds) if kind == ATTENTION]:
        kinds[i - 1] = kinds[i + 1] = ATTENTION  # the linear layers around it
    spent: defaultdict[str, float] = defaultdict(float)
    for _ in range(PROFILED):
        for step, kind in zip(steps, kinds, strict=True):
            began = time.perf_counter()
            do(step.ctypes.data, 1)
            spent[kind] += time.perf_counter() - began
    whole = mean_ms(run, 0.2) / 1e3 * PROFILED
    spent[INTERPRETER] = max(0.0, whole - sum(spent.values()))
    return {kind: spent[kind] / sum(spent.values()) for kind in KINDS}


def _has_ancestor(event: Any, name: str) -> bool:
    while (event := event.cpu_parent) is not None:
        if event.name == name:
            return True
    return False


def network_profile(info: ModelInfo, dtype: str, cores: int, seconds: float) -> dict[str, Any]:
    """`single` and `full`: milliseconds of a forward by kind, of one row as quick as it goes and of all lanes with
    their largest parts; with the peak of matrix products on the same threads."""
    install_scopes()
    keep_freed_memory()  # as the engine does
    kind = getattr(torch, dtype)
    unet = load_unet(info, torch.device("cpu"))
    parameters = sum(weight.numel() for weight in unet.parameters())
    largest = rows_of_part(parameters, info.image_size**2)[-1]
    found: dict[str, Any] = {"gflop_per_image_step": gflop_per_image_step(info)}
    with torch.inference_mode():
        forward = build_forward(unet, info, torch.device("cpu"), kind)
        products, each_has = products_of(forward, kind)
        single, full = inputs(info, forward, 1), inputs(info, forward, largest)
        times = {}
        for threads in sorted({1, team_size(1, cores)}):
            torch.set_num_threads(threads)
            times[threads] = mean_ms(lambda: forward.run(*single), seconds)
        threads = min(times, key=lambda count: times[count])
        torch.set_num_threads(threads)
        split = shares_of(forward, single)
        torch.set_num_threads(1)
        found["single"] = {"rows": 1, "threads": threads, "lanes": 1, "ms": times[threads], "shares": split}
        split = shares_of(forward, full)
        lanes = Lanes(cores)
        whole = mean_ms(lambda: lanes.run([lambda: forward.run(*full)] * cores, 1), seconds)
        lanes.close()
        found["full"] = {"rows": largest * cores, "threads": 1, "lanes": cores, "ms": whole, "shares": split}
    for each in (found["single"], found["full"]):
        each["peak_gflops"] = matmul_peak(products, each["threads"], each["lanes"], seconds) / each_has
        each["kinds_ms"] = {name: each["ms"] * share for name, share in each.pop("shares").items()}
    return found


def engine_profile(info: ModelInfo, dtype: str, cores: int, seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds of the engine's work around the network, for one image and for a full batch of one-step images."""
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        runner, _ = prepare_runner(info, EngineConfig("cpu", dtype, cores, 64, 1e9, True, cache))
        for name, size in (("single", 1), ("full", cores * ROWS[-1])):
            samples = [
                Sample(
                    id=i,
                    request=i,
                    client="",
                    model=info.name,
                    seed=i,
                    class_label=i % info.num_classes if info.num_classes else None,
                    sigmas=(info.schedule.sigma_max,),
                )
                for i in range(size)
            ]
            images = [row.x[0] for row in runner.begin(samples)]
            kinds = ["uint8"] * size
            found[name] = {
                "schedule": mean_ms(lambda some=samples: _schedule(some), seconds / 5),
                "noise": mean_ms(lambda some=samples: runner.begin(some), seconds / 5),
                "uint8": mean_ms(lambda some=images, wanted=kinds: runner.collect(some, wanted).wait(), seconds / 5),
                "messages": mean_ms(lambda some=samples: _messages(some, info), seconds / 5),
            }
    return found


def _schedule(samples: list[Sample]) -> None:
    scheduler = Scheduler()
    for sample in samples:
        scheduler.add(sample)
    scheduler.update(scheduler.schedule(len(samples)))


def _messages(samples: list[Sample], info: ModelInfo) -> None:
    """Packs and unpacks what crosses the socket, in both directions."""
    pixels = bytes(info.image_size**2 * info.channels)
    for sample in samples:
        decode_to_engine(frame(Submit((sample,)))[4:])
        decode_from_engine(frame(Finished(sample.id, SampleResult(pixels, 0.0, 0.0)))[4:])

"""Runs a network on a GPU: one graph for each batch size, nothing read back while a step is under way.

What talks to CUDA is in `GraphRecorder`, `SideStream` and `CudaNetwork`; the rest is plain bookkeeping over tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from service.engine.forward import Forward
from service.engine.lanes import Way, filled
from service.engine.network import Mark, keys

log = logging.getLogger(__name__)

PREFERRED_ANCHORS = (8, 16, 4)  # define the bits: the first that agrees with itself
WARM_UPS = 3  # forwards before a graph is captured, in which libraries choose their kernels
DRAWING_THREADS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


class Recorder(Protocol):
    """Makes a computation over fixed places replayable."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Runs it; gives a replay and the place where each replay puts its result."""


class GraphRecorder:
    """CUDA graphs that share one memory pool; record the largest first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Warms up on a side stream, as capture demands, then captures."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = run()
        return graph.replay, output


class Buckets:
    """A forward for some batch sizes only, each recorded over the same input places."""

    def __init__(self, forward: Forward, x: Tensor, prepared: Sequence[Tensor], sizes: Iterable[int]) -> None:
        """`x` and `prepared` are inputs of the largest size; they become the fixed places."""
        self._forward = forward
        self._inputs = (x.clone(), *(each.clone() for each in prepared))
        self._sizes = sorted(sizes)
        self._recorded: dict[int, tuple[Callable[[], None], Tensor]] = {}

    @property
    def sizes(self) -> list[int]:
        """What is recorded, ascending."""
        return sorted(self._recorded)

    def record(self, recorder: Recorder) -> None:
        """Records every size, the largest first, so that the smaller ones fit into its memory.

        Those that the device has no room for are left out. Raises torch.OutOfMemoryError for one that may be the
        anchor, for a passing shortage must not decide the bits: the next start may have room.
        """
        for size in reversed(self._sizes):
            if not self._fits(recorder, size):
                log.warning("no memory for batches of %d: max_batch_size is less here", size)
                torch.cuda.empty_cache()  # does nothing where there is no GPU

    def _fits(self, recorder: Recorder, size: int) -> bool:
        places = tuple(place[:size] for place in self._inputs)
        try:
            self._recorded[size] = recorder.record(partial(self._forward.run, places[0], places[1:]))
        except torch.OutOfMemoryError:
            if size <= PREFERRED_ANCHORS[0]:
                raise
            return False
        return True

    def keep(self, sizes: Iterable[int]) -> None:
        """Drops all other sizes."""
        self._recorded = {size: self._recorded[size] for size in sizes}

    def run(self, x: Tensor, prepared: Sequence[Tensor]) -> Tensor:
        """Model output for `x` `[B, C, H, W]`, `B` one of the sizes (else KeyError); the caller's own."""
        replay, output = self._recorded[len(x)]
        for place, value in zip(self._inputs, (x, *prepared), strict=True):
            place[: len(x)].copy_(value)
        replay()
        return output.clone()


class SideStream:
    """Copies finished rows to pinned memory while the next step runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy_out(self, value: Tensor) -> Callable[[], Tensor]:
        """Starts the copy of what the current stream computes; the result waits for it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        with torch.cuda.stream(self._stream):
            host.copy_(value, non_blocking=True)
        value.record_stream(self._stream)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(self._stream)

        def wait() -> Tensor:
            done.synchronize()
            return host

        return wait


class CudaNetwork:
    """A network on a GPU, as `service.engine.network.Network`."""

    lanes = None

    def __init__(
        self,
        forward: Forward,
        latent_shape: tuple[int, int, int],
        class_conditional: bool,
        device: torch.device,
        largest: int,
        recorder: Recorder | None = None,
    ) -> None:
        """Records the powers of two up to `largest`, and `largest`. Without a `recorder` it uses CUDA graphs."""
        self.device = device
        self.plan = f"{forward.plan}, graphs"
        self._forward = forward
        sizes = {largest, *(2**i for i in range(largest.bit_length()))}
        prepared = forward.prepare([(0.0, 0 if class_conditional else None)] * largest)
        x = torch.zeros((largest, *latent_shape), device=device)
        self._buckets = Buckets(forward, x, prepared, sizes)
        self._buckets.record(recorder or GraphRecorder(device))
        self._side = SideStream(device) if device.type == "cuda" else None
        self._drawing = ThreadPoolExecutor(DRAWING_THREADS, thread_name_prefix="draw")

    @property
    def anchors(self) -> tuple[Way, ...]:
        """The first of some middling sizes that agrees with itself, else single rows."""
        return (*(Way(size, 1) for size in PREFERRED_ANCHORS if size in self._buckets.sizes), Way(1, 1))

    @property
    def candidates(self) -> tuple[Way, ...]:
        """Every recorded size."""
        return tuple(Way(size, 1) for size in self._buckets.sizes)

    def admit(self, ways: Sequence[Way]) -> None:
        """Drops the graphs of all other sizes."""
        self._buckets.keep(way.rows for way in ways)

    def sizes(self, largest: int) -> list[int]:
        """Every admitted size."""
        return [size for size in self._buckets.sizes if size <= largest]

    def padded(self, rows: int) -> int:
        """A batch is filled up to the next admitted size."""
        largest = self._buckets.sizes[-1]
        whole, rest = divmod(rows, largest)
        return whole * largest + (next(size for size in self._buckets.sizes if size >= rest) if rest else 0)

    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor | None, /) -> Tensor:
        """Queues the work and returns; larger batches than the largest size take several graphs."""
        return self._run(x, time, class_labels, self._buckets.sizes)

    def run_as(self, way: Way, x: Tensor, time: Tensor, class_labels: Tensor | None) -> Tensor:
        """As a call, but every part in one size."""
        return self._run(x, time, class_labels, [way.rows])

    def mark(self) -> Mark:
        """The end of the work queued so far, copies on the side stream excepted."""
        if self.device.type != "cuda":
            return Mark(lambda: None, lambda: True)
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))
        return Mark(done.synchronize, done.query)

    def copy_out(self, value: Tensor) -> Callable[[], Tensor]:
        """Starts to copy `value` to the host; the result waits for it."""
        return self._side.copy_out(value) if self._side else lambda: value

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Noise is drawn by several threads."""
        return list(self._drawing.map(function, items))

    def _run(self, x: Tensor, time: Tensor, class_labels: Tensor | None, allowed: Sequence[int]) -> Tensor:
        prepared = self._forward.prepare(keys(time, class_labels))
        outputs = []
        for start in range(0, len(x), allowed[-1]):
            stop = min(start + allowed[-1], len(x))
            rows = next(size for size in allowed if size >= stop - start)
            part = tuple(filled(each, start, stop, rows) for each in (x, *prepared))
            outputs.append(self._buckets.run(part[0], part[1:])[: stop - start])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

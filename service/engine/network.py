"""The seam between the engine and a device: batches in, batches out, and ways to run that can be admitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from service.engine.embedding import Key
from service.engine.lanes import Place, Way

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mark(NamedTuple):
    """A point in the work that a device was asked for."""

    wait: Callable[[], None]  # until the device is past it
    passed: Callable[[], bool]  # whether it is; waits for nothing


class SideBySide(Protocol):
    """Lanes in which forwards of a network run side by side."""

    @property
    def count(self) -> int:
        """How many."""

    def place(self, ready: int, free: int) -> Place | None:
        """What a row gets that is alone, or one of few, while `free` lanes wait; None when there is a row for each."""

    def start(self, work: Callable[[], Result], place: Place) -> Future[Result]:
        """`work` in a lane; the network's calls in it have the threads of their `place`."""

    def observe(self, place: Place, seconds: float) -> None:
        """How long work in a place took."""


class Network(Protocol):
    """A network on its device, as `service.diffusion.denoiser.Network` and what certification needs."""

    device: torch.device
    plan: str  # how it runs; part of the numerics fingerprint

    @property
    def anchors(self) -> tuple[Way, ...]:
        """Ways that may define the bits: the first that agrees with itself does. In the last, rows are alone."""

    @property
    def candidates(self) -> tuple[Way, ...]:
        """Every way that may be admitted."""

    def admit(self, ways: Sequence[Way]) -> None:
        """Restricts calls to these ways."""

    def padded(self, rows: int) -> int:
        """Rows that are computed for a batch of `rows`."""

    def sizes(self, largest: int) -> list[int]:
        """Batch sizes up to `largest` whose times tell those of all others, ascending."""

    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor | None, /) -> Tensor:
        """Model output `[B, C, H, W]` float32 for rows `x`, in admitted ways.

        Times `[B]` and labels `[B]` are on the CPU.
        """

    @property
    def lanes(self) -> SideBySide | None:
        """None for a device that queues forwards: there calls return before their work is done."""

    def mark(self) -> Mark:
        """The end of the work of earlier calls, and not of later ones."""

    def copy_out(self, value: Tensor) -> Callable[[], Tensor]:
        """Starts to copy `value` to the host; the result waits for it."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """As the builtin, in the way that suits drawing noise on the CPU."""

    def run_as(self, way: Way, x: Tensor, time: Tensor, class_labels: Tensor | None) -> Tensor:
        """As a call, but in one way, admitted or not."""


def keys(time: Tensor, class_labels: Tensor | None) -> list[Key]:
    """What each row's embedding depends on."""
    labels = [None] * len(time) if class_labels is None else class_labels.tolist()
    return list(zip(time.tolist(), labels, strict=True))

"""A step's gradients replayed from a CUDA graph: a CPU takes longer to start its kernels than a GPU to run them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

EAGER = 3  # first calls that run as ever: they set up what must not be set up while a graph is recorded


class Replayed:
    """A computation without arguments, in fixed tensors and of fixed sizes, that draws from one generator.

    It must never wait for the GPU. What it leaves (gradients, say) lies at the same place after every replay, so
    nobody else may replace it.
    """

    def __init__(self, compute: Callable[[], Tensor], forget: Callable[[], None], generator: torch.Generator) -> None:
        """`forget` drops the gradients there are: those of a graph must be its own."""
        self.compute, self.forget, self.generator = compute, forget, generator
        self.calls = 0
        self._kind: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor

    def __call__(self, kind: Hashable = None) -> Tensor:
        """What the computation returns. `kind` says what besides tensors it depends on: if another, it is recorded."""
        self.calls += 1
        if self.calls <= EAGER:
            self.forget()
            return self.compute()
        if self._graph is None or kind != self._kind:
            self._record(kind)
        assert self._graph is not None
        self._graph.replay()
        return self._result.clone()

    def _record(self, kind: Hashable) -> None:
        self.forget()
        self._graph, self._kind = torch.cuda.CUDAGraph(), kind
        self._graph.register_generator_state(self.generator)
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph):
            self._result = self.compute()

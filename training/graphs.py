"""A network's calls replayed from a CUDA graph: a CPU takes longer to start its kernels than a GPU to run them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A UNet as `(x, time, class_labels) -> output`, in bfloat16 if asked."""

    def __init__(self, unet: nn.Module, autocast: bool) -> None:
        super().__init__()
        self.unet, self.autocast = unet, autocast

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        # a graph must not keep casts that it has not made itself
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False):
            output: Tensor = self.unet(x, time, class_labels=class_labels).sample
        return output


class Replayed:
    """The same for batches of `rows` on a GPU, gradients included; it runs others, and all on a CPU, as ever.

    Weights may change in place; which of them want gradients may not, after the first call.
    """

    def __init__(self, network: Network, rows: int) -> None:
        self.network, self.rows = network, rows
        self._graph: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        if not x.is_cuda or len(x) != self.rows:
            output: Tensor = self.network(x, time, class_labels)
            return output
        if self._graph is None:
            examples = tuple(each.detach().clone() for each in (x, time, class_labels))
            with torch.enable_grad():
                graphed = Network(self.network.unet, self.network.autocast).train(self.network.training)
                self._graph = torch.cuda.make_graphed_callables(graphed, examples, allow_unused_input=True)
        return self._graph(x, time, class_labels).clone()  # the next call overwrites what it returned

"""Seeded noise: one CPU generator per image, so an image never depends on its neighbours in a batch."""

from __future__ import annotations

import torch
from torch import Tensor


class NoiseSource:
    """The draws of one image, in the order in which `ConsistencyModelPipeline` makes them.

    The first draw is the latents, each later one a step's noise; all are float32 `[1, C, H, W]` on the CPU.
    Given latents replace the first draw without advancing the generator, as in diffusers' `prepare_latents`.
    """

    def __init__(self, seed: int, shape: tuple[int, int, int]) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._shape = (1, *shape)

    def draw(self) -> Tensor:
        """Next draw, unit variance."""
        return torch.randn(self._shape, generator=self._generator, dtype=torch.float32)

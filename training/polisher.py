"""The polish after distillation: the same pictures without their grain.

A model of few steps leaves grain in areas that should be flat, far below the contrast of the drawing. The weights at
the phase's start are kept as they are; what they make of some noise, after an edge-preserving filter, is what the model
should make of the same noise. Targets do not move with the model, so nothing can fade or oscillate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.data import Avatars
from training.network import SIGMA_MAX, build_unet, denoiser
from training.recipe import Phase, Recipe
from training.starts import draw_starts
from training.trainer import Trainer

NOISED, NOISED_FROM = 0.5, 0.2  # share of starts that are noised pictures, and the least noise of those
PASSES = 4  # of the filter
WIDTH = 5  # of the square in which neighbours count, pixels
SPATIAL = 2.0  # the distance at which a neighbour counts less, pixels
TONAL = 0.1  # the difference of colours at which it does, in units of values in [-1, 1]


class Polisher(Trainer):
    """Phase "polish". Batches are starts from noise and from noised pictures."""

    kept_for: Phase = "polish"
    largest_gradient: float = 1.0

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, self.kept_for, data, run, device, bf16, compiled)
        self.before = build_unet(recipe.network).to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.estimate_before = denoiser(self.before, bf16, compiled)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins with these weights, and keeps them for the targets."""
        super().start_from(weights)
        self.before.load_state_dict(self.unet.state_dict())  # silenced as the model is

    def loss(self) -> Tensor:
        """Of a new batch: mean distance to its targets."""
        x, sigma, labels, target = self.examples()
        return distances(self.denoise(x, sigma, labels), target).mean()

    @torch.no_grad()
    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of x `[B, 3, H, W]`, sigma `[B]`, class labels `[B]` and what to make of them, `[B, 3, H, W]`."""
        x, sigma, labels = self.starts()
        return x, sigma, labels, self.cleaned(self.estimate_before(x, sigma, labels), labels)

    def starts(self) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of x, sigma and class labels."""
        return draw_starts(self.data, self.phase.batch, NOISED, NOISED_FROM, self.generator)[:3]

    def cleaned(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """Of pictures of the weights before, `[B, 3, H, W]`, what they should have been."""
        return without_grain(pictures)

    @torch.no_grad()
    def one_step_before(self, labels: Tensor) -> Tensor:
        """One-step samples of the weights before, `[B, 3, H, W]`."""
        size = self.data.image_size
        x = SIGMA_MAX * torch.randn((len(labels), 3, size, size), generator=self.generator, device=self.device)
        sigma = torch.full((len(labels),), SIGMA_MAX, device=self.device)
        return self.estimate_before(x.contiguous(memory_format=torch.channels_last), sigma, labels)

    def state(self) -> dict[str, Any]:
        """The model's, and the weights before it."""
        return super().state() | {"before": self.before.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.before.load_state_dict(state["before"])


def distances(made: Tensor, target: Tensor) -> Tensor:
    """Between pictures `[B, 3, H, W]`, of values and of their steps to the next pixels: `[B]`.

    Where a whole area is a little off its colour, values alone hardly ask for it to be even; steps do.
    """
    off = made - target
    return sum((d.abs().mean((1, 2, 3)) for d in (off.diff(dim=2), off.diff(dim=3))), off.abs().mean((1, 2, 3)))


def without_grain(pictures: Tensor) -> Tensor:
    """Pictures `[B, C, H, W]` in [-1, 1] after all passes of the filter."""
    for _ in range(PASSES):
        pictures = flattened(pictures)
    return pictures


def flattened(x: Tensor) -> Tensor:
    """Pictures `[B, C, H, W]` in [-1, 1] after a bilateral filter (Tomasi and Manduchi 1998): grain goes, edges stay.

    Neighbours count by how near they are and by how alike their colours are. Drawings with flat colours hardly change.
    """
    around = functional.pad(x, (WIDTH // 2,) * 4, mode="replicate")
    patches = functional.unfold(around, WIDTH).view(*x.shape[:2], WIDTH**2, *x.shape[2:])
    unlike = (patches - x[:, :, None]).square().sum(1, keepdim=True)
    at = torch.arange(WIDTH, device=x.device, dtype=x.dtype) - WIDTH // 2
    far = (at[:, None].square() + at[None, :].square()).view(1, 1, -1, 1, 1)
    weight = torch.exp(-unlike / (2 * TONAL**2) - far / (2 * SPATIAL**2))
    return (patches * weight).sum(2) / weight.sum(2)

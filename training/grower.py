"""Growth: a finished model of half the side becomes one of the whole side.

The network begins as the smaller one with a level around it (`training/growth.py`). The smaller one stays as it is: for
the same noise, every second pixel of it, the new pictures are to be its pictures when they are halved, so that the way
from noise to picture need not be learnt again. Avatars under little noise are to be found again in every pixel.

The new level alone moves: moved with it, the others lose that way within a few hundred steps. Starts are the finish's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from training.data import Avatars
from training.finisher import Finisher, shown
from training.growth import grow, grown_parts
from training.network import build_unet, denoiser
from training.polisher import distances
from training.recipe import Phase, Recipe
from training.trainer import Trainer


class Grower(Finisher):
    """Phase "grow". Begins with the weights of a network of half the side, with `recipe.network` but one level."""

    kept_for: Phase = "grow"
    share_noised: float = 0.6
    share_own: float = 0.35

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        smaller = build_unet(recipe.network.halved())
        self.before = smaller.to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.estimate_before = denoiser(self.before, bf16, compiled)
        self.unet.requires_grad_(False)
        for part in grown_parts(self.unet):
            part.requires_grad_(True)
        moving = [each for each in self.unet.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(moving, lr=self.phase.learning_rate, betas=(0.9, 0.99), weight_decay=0)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins with the smaller network's weights, and keeps them."""
        self.before.load_state_dict(weights)
        grow(self.unet, weights)
        Trainer.start_from(self, dict(self.unet.state_dict()))

    def loss(self) -> Tensor:
        """Of a new batch: mean distance to its targets."""
        own = len(self._noise_of_own())
        x, sigma, labels, target = self.examples()
        made = self.denoise(x, sigma, labels)
        self.own = self.kept(made.detach(), sigma, labels)
        return self.off(made, target, (x, sigma, labels), own)

    @torch.no_grad()
    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Own pictures are to be made of themselves, noised avatars of those, noise of nothing in particular."""
        x, sigma, labels = self.starts()
        target = torch.zeros_like(x)
        target[: len(self.noised)] = self.noised
        if self.own is not None:
            target[: len(self.own[0])] = self.cleaned(*self.own[:2])
        return x, sigma, labels, target

    def distance(self, made: Tensor, target: Tensor, starts: tuple[Tensor, Tensor, Tensor], own: int) -> Tensor:
        """To a target as far as it shows through noise; else, own pictures apart, to what the smaller network makes."""
        x, sigma, labels = (part[own:] for part in starts)
        with torch.no_grad():
            smaller = self.cleaned(self.estimate_before(x[:, :, ::2, ::2], sigma, labels), labels)
        near = shown(starts[1])
        whole = near * distances(made, target)
        halved = (1 - near[own:]) * distances(functional.avg_pool2d(made[own:], 2), smaller)
        return torch.cat([whole[:own], whole[own:] + halved])

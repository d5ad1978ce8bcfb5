"""Growth: a finished model of half the side becomes one of the whole side.

The network begins as the smaller one with a level around it (`training/growth.py`). For the same noise, every second
pixel of it, the new pictures are to be its pictures as an enlarger redraws them (`training/enlarger.py`), so that the
way from noise to picture need not be learnt again. Avatars under little noise are to be found again in every pixel.

Only what draws the picture moves. What looks at the noise stays as it is: moved a little, it makes the rest see other
noise, and pictures become the mean of all.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.backgrounds import Backgrounds
from training.data import Avatars
from training.enlarger import Enlarger
from training.finisher import finer, shown
from training.growth import grow, let_draw
from training.network import build_unet, denoiser
from training.polisher import Polisher, distances
from training.recipe import Phase, Recipe
from training.starts import draw_starts
from training.trainer import Trainer

NOISED, NOISED_FROM = 0.6, 0.1  # share of starts that are avatars with noise, and the least noise on those


class Grower(Polisher):
    """Phase "grow". Begins with the weights of a network of half the side, with `recipe.network` but one level.

    FileNotFoundError if the run has no enlarger.
    """

    kept_for: Phase = "grow"
    levels: int = 2  # on the way up, that move

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        smaller = build_unet(recipe.network.halved())
        self.before = smaller.to(device, memory_format=torch.channels_last).requires_grad_(False)
        self.estimate_before = denoiser(self.before, bf16, compiled)
        self.enlarger = Enlarger.load(run / "enlarger.safetensors", device)
        self.backgrounds = Backgrounds(data, device)
        self.moving = let_draw(self.unet, self.levels)
        self.optimizer = torch.optim.AdamW(self.moving, lr=self.phase.learning_rate, betas=(0.9, 0.99), weight_decay=0)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins with the smaller network's weights, and keeps them."""
        self.before.load_state_dict(weights)
        grow(self.unet, weights)
        Trainer.start_from(self, dict(self.unet.state_dict()))

    def loss(self) -> Tensor:
        """Of a new batch: mean distance to its targets."""
        x, sigma, labels, known = self.beginnings()
        return self.off(self.denoise(x, sigma, labels), known, x, sigma, labels)

    def beginnings(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of x, sigma, class labels, and the pictures that the first of them are made of, `[R, 3, H, W]`."""
        return draw_starts(self.data, self.phase.batch, NOISED, NOISED_FROM, self.generator)

    def off(self, made: Tensor, known: Tensor, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Mean distance of pictures `[B, 3, H, W]`: to what is `known` of them where it shows, and to redrawn ones."""
        off = distances(made, self.enlarged(x, sigma, labels))
        noised = len(known)
        near = shown(sigma[:noised])
        off = torch.cat([near * distances(made[:noised], known) + (1 - near) * off[:noised], off[noised:]])
        return (off * finer(sigma)).mean()

    @torch.no_grad()
    def enlarged(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """What the smaller network makes of starts `[B, 3, 2S, 2S]`, redrawn, on level backgrounds."""
        halves = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
        small = self.estimate_before(halves, sigma, labels).clamp(-1, 1)
        return self.backgrounds.levelled(self.enlarger(small).clamp(-1, 1), labels)

"""A critic of finished pictures, for what regression cannot give, beside targets that keep the colours.

A model that is taught targets makes the median of those it cannot tell apart: soft outlines, hardly a face. A critic
that tells its pictures from avatars (`training/picture_critic.py`) wants any one of them, but whole. As in CTM (Kim et
al. 2024, "Consistency Trajectory Models") other losses hold the model to its noise: the critic alone made all
backgrounds pink. It leaves grain, which the finish takes away again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.backgrounds import Backgrounds
from training.data import Avatars
from training.picture_critic import PictureCritic, short_memory
from training.polisher import without_grain
from training.recipe import Phase, Recipe
from training.snapper import Snapper
from training.starts import put_own

OWN = 0.375  # share of starts that are the model's own pictures
OWN_NOISE = (0.3, 5.0)  # least and most of it on those: under more, a picture hardly shows through
HAZE = 0.2  # over what the critic sees
CELLS = 4  # squares along a side, whose mean colours are compared with the target's
COLOURS, VALUES = 50.0, 400.0  # weights of the distances to the target
OWN_HELD = 0.2  # share of the latter for own pictures: a second step is to better them, not to repeat them
EVEN = 50.0  # weight of the distance to the same picture with a level background


class AdversarialTuner(Snapper):
    """Phase "adversarial". Starts and targets are the last touch's, and pictures of the model's own.

    `own` are some that it made in the step before, of noise or of others, without their grain, `[R, 3, H, W]`, and
    their labels: so the critic sees second steps and later ones as they will be.
    """

    kept_for: Phase = "adversarial"
    share_of_prices: float = 1.0  # here targets say little but colours, and the critic keeps pictures whole
    share_noised: float = 0.5

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        self.critic = PictureCritic(data, self.generator, device, bf16, HAZE)
        self.backgrounds = Backgrounds(data, device)
        self.optimizer = short_memory(self.unet.parameters(), self.phase.learning_rate)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins as the last touch does, and lets the critic learn what these weights make."""
        super().start_from(weights)
        for _ in range(self.phase.ahead):
            x, sigma, labels, _ = self.examples()
            with torch.no_grad():
                made = self.denoise(x, sigma, labels)
            self.critic.learn(made, labels)

    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The last touch's, with own pictures, to be made of themselves, instead of the first of the noised avatars."""
        x, sigma, labels, target = super().examples()
        if self.own is not None:
            put_own((x, sigma, labels), *self.own, OWN_NOISE, self.generator)
            target[: len(self.own[0])] = self.own[0]
        return x, sigma, labels, target

    def loss(self) -> Tensor:
        """Of a new batch: its gradient is what critic and targets ask for, its value says little."""
        x, sigma, labels, target = self.examples()
        held = torch.ones_like(sigma)
        if self.own is not None:
            held[: len(self.own[0])] = OWN_HELD
        made = self.denoise(x, sigma, labels)
        clean = without_grain(made.detach().clamp(-1, 1))
        kept = torch.randperm(len(x), generator=self.generator, device=self.device)[: max(1, int(len(x) * OWN))]
        self.own = clean[kept], labels[kept]
        pull = self.critic.pull(made, labels)
        uneven = (made - self.backgrounds.levelled(made.detach(), labels, seen=clean)).abs().mean()
        return (made * pull).sum() + distance_to_target(made, target, sigma, held) + EVEN * uneven

    def result(self) -> dict[str, Tensor]:
        """The average, all of the way."""
        return self.average.weights

    def state(self) -> dict[str, Any]:
        """The last touch's and the critic's."""
        return super().state() | self.critic.state() | {"own": self.own}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.critic.restore(state)
        self.own = state["own"]


def distance_to_target(made: Tensor, target: Tensor, sigma: Tensor, held: Tensor) -> Tensor:
    """Between pictures `[B, 3, S, S]`: mean colours of squares at all noise levels, values only where sigma is low.

    Under little noise there is one right picture, and the target is it; under much, details are the critic's business.
    `held` `[B]` is how far a picture's values count.
    """
    off = made - target
    values = (held * off.abs().mean((1, 2, 3)) / (1 + sigma).pow(5)).mean()
    return COLOURS * functional.avg_pool2d(off, off.shape[-1] // CELLS).abs().mean() + VALUES * values

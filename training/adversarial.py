"""A critic of finished pictures, for what regression cannot give, beside targets that keep the colours.

A model that is taught targets makes the median of those it cannot tell apart: soft outlines, hardly a face. A critic
that tells its pictures from avatars wants any one of them, but whole. It sees them through a network trained on
ImageNet that stays as it is (Sauer et al. 2021, "Projected GANs Converge Faster"). As in CTM (Kim et al. 2024,
"Consistency Trajectory Models") other losses hold the model to its noise: the critic alone made all backgrounds pink.
It leaves grain, which a polish takes away again: phase "finish".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.backgrounds import Backgrounds
from training.critic import Critic, hinge
from training.data import Avatars
from training.feature_maps import FeatureMaps
from training.polisher import without_grain
from training.recipe import CLASSES, Phase, Recipe
from training.snapper import Snapper
from training.starts import put_own

OWN, OWN_FROM = 0.375, 0.3  # share of starts that are the model's own pictures, and the least noise of those
CRITIC_LEARNING_RATE = 4e-4
BETAS = (0.0, 0.99)  # of short memory: what the other network does changes all the time
ENLARGED_TO = 128  # pixels on a side of what the critic sees; its finest map has a place for four of them
LEFT_OUT = 8  # the critic sees a window, smaller than the picture by one of so many pixels: edges get no frame
HAZE = 0.2  # the most noise on what it sees, in units of values in [-1, 1]: without it, it wins and teaches little
CELL = 8  # pixels on a side of the squares whose mean colours are compared with the target's
COLOURS, VALUES = 50.0, 400.0  # weights of the distances to the target
EVEN = 50.0  # weight of the distance to the same picture with a level background


class AdversarialTuner(Snapper):
    """Phase "adversarial". Starts and targets are the last touch's, and pictures of the model's own.

    `own` are some that it made in the step before, of noise or of others, without their grain, `[R, 3, H, W]`, and
    their labels: so the critic sees second steps and later ones as they will be.
    """

    kept_for: Phase = "adversarial"
    share_of_prices: float = 1.0  # here targets say little but colours, and the critic keeps pictures whole
    share_noised: float = 0.5
    own: tuple[Tensor, Tensor] | None = None

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        self.maps = FeatureMaps(ENLARGED_TO // data.image_size, bf16).to(device)
        self.backgrounds = Backgrounds(data, device)
        self.critic = Critic(FeatureMaps.channels, len(CLASSES)).to(device)
        self.optimizer = self._adam(self.unet, self.phase.learning_rate)
        self.critic_optimizer = self._adam(self.critic, CRITIC_LEARNING_RATE)

    @staticmethod
    def _adam(network: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=BETAS, weight_decay=0)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins as the last touch does, and lets the critic learn what these weights make."""
        super().start_from(weights)
        for _ in range(self.phase.ahead):
            x, sigma, labels, _ = self.examples()
            with torch.no_grad():
                made = self.denoise(x, sigma, labels)
            self._teach_critic(self._opinions(made, labels))

    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The last touch's, with own pictures, to be made of themselves, instead of the first of the noised avatars."""
        x, sigma, labels, target = super().examples()
        if self.own is not None:
            put_own((x, sigma, labels), *self.own, OWN_FROM, self.generator)
            target[: len(self.own[0])] = self.own[0]
        return x, sigma, labels, target

    def loss(self) -> Tensor:
        """Of a new batch: its gradient is what critic and targets ask for, its value says little.

        The critic learns from the same opinions, so that it looks at every picture once.
        """
        x, sigma, labels, target = self.examples()
        made = self.denoise(x, sigma, labels)
        clean = without_grain(made.detach().clamp(-1, 1))
        kept = torch.randperm(len(x), generator=self.generator)[: max(1, int(len(x) * OWN))].to(self.device)
        self.own = clean[kept], labels[kept]
        seen = made.detach().requires_grad_()
        opinions = self._opinions(seen, labels)
        liked = torch.stack([opinion.mean() for opinion in opinions]).mean()
        (pull,) = torch.autograd.grad(-liked, seen, retain_graph=True)
        self._teach_critic(opinions)
        uneven = (made - self.backgrounds.levelled(made.detach(), labels, seen=clean)).abs().mean()
        return (made * pull).sum() + distance_to_target(made, target, sigma) + EVEN * uneven

    def _opinions(self, pictures: Tensor, labels: Tensor) -> list[Tensor]:
        """The critic's logits `[B, h, w]` for every map."""
        return self.critic(self.maps(self._hazy_window(pictures)), labels)

    def _hazy_window(self, pictures: Tensor) -> Tensor:
        """Pictures `[B, 3, S, S]` to `[B, 3, s, s]`, at the same place in all of them."""
        margin = pictures.shape[-1] // LEFT_OUT
        size = pictures.shape[-1] - margin
        top, left = torch.randint(margin + 1, (2,), generator=self.generator).tolist()
        haze = HAZE * torch.rand(len(pictures), 1, 1, 1, generator=self.generator)
        noise = haze * torch.randn((len(pictures), 3, size, size), generator=self.generator)
        return pictures[:, :, top : top + size, left : left + size] + noise.to(self.device)

    def _teach_critic(self, made: list[Tensor]) -> None:
        """One step of the critic: its opinions of made pictures, and of as many avatars."""
        pictures, labels = self.data.batch(len(made[0]), self.generator, self.device)
        hinge(self._opinions(pictures, labels), made).backward(inputs=list(self.critic.parameters()))
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad(set_to_none=True)

    def result(self) -> dict[str, Tensor]:
        """The average, all of the way."""
        return self.average.weights

    def state(self) -> dict[str, Any]:
        """The last touch's and the critic's."""
        others = {"critic": self.critic.state_dict(), "critic_optimizer": self.critic_optimizer.state_dict()}
        return super().state() | others | {"own": self.own}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.critic.load_state_dict(state["critic"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.own = state["own"]


def distance_to_target(made: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Between pictures `[B, 3, S, S]`: mean colours of squares at all noise levels, values only where sigma is low.

    Under little noise there is one right picture, and the target is it; under much, details are the critic's business.
    """
    off = made - target
    values = (off.abs().mean((1, 2, 3)) / (1 + sigma).pow(3)).mean()
    return COLOURS * functional.avg_pool2d(off, CELL).abs().mean() + VALUES * values

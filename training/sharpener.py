"""The end of growth: the same targets, and a critic that sees what they leave soft.

A grown model is no better than what an enlarger makes of the smaller model's pictures, smudges included. The critic
compares with avatars of the whole size (`training/picture_critic.py`). Starts are also the model's own pictures with
new noise, as second steps have, and under little noise these are their own targets, without their grain. As in the
finish, drift keeps kinds apart.

As in growth, what looks at the noise stays as it is; here all of the way up moves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data import Avatars
from training.drift import Drift
from training.finisher import LATER, NEXT, OWN_FROM, drifting, unit
from training.grower import Grower
from training.picture_critic import PictureCritic, short_memory
from training.polisher import without_grain
from training.recipe import Phase, Recipe
from training.starts import draw_starts, kept_of, put_own
from training.state import load_state
from training.trainer import Trainer

NOISED, NOISED_FROM = 0.7, 0.1  # share of starts that are pictures with noise, and the least noise of avatars
OWN = 0.5  # share of starts that are the model's own pictures, with the noise that they have in the finish
HAZE = 0.05  # over that
PULL = 6.0  # of the critic, in units of the targets'
DRIFT = 4.0  # of drift, in the same units
KINDS_ENLARGED = 2  # times, what drift sees: kinds of drawings show without the finest lines


class Sharpener(Grower):
    """Phase "sharpen". Begins with the weights that growth left in the run; its state tells the smaller network's.

    FileNotFoundError if there was no growth.
    """

    kept_for: Phase = "sharpen"
    levels: int = 4

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        self.critic = PictureCritic(data, self.generator, device, bf16, HAZE)
        self.drift = Drift(data, LATER + 1, self.generator, device, bf16, KINDS_ENLARGED)
        self.optimizer = short_memory(self.moving, self.phase.learning_rate)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins with grown weights, and lets the critic learn what these make."""
        self.before.load_state_dict(load_state(self.run / "grow.state", self.device)["before"])
        Trainer.start_from(self, weights)
        for _ in range(self.phase.ahead):
            x, sigma, labels, _ = self.beginnings()
            with torch.no_grad():
                made = self.denoise(x, sigma, labels)
            self.critic.learn(made, labels)

    def loss(self) -> Tensor:
        """Of a new batch: its gradient is what critic and targets ask for, its value says little."""
        earlier = torch.empty(0, device=self.device) if self.own is None else self.own[2]
        x, sigma, labels, known = self.beginnings()
        made = self.denoise(x, sigma, labels)
        self.own = kept_of(made.detach(), sigma, labels, OWN, self.generator)
        off = self.off(made, known, x, sigma, labels)
        (targets_pull,) = torch.autograd.grad(off, made, retain_graph=True)
        pulls = PULL * unit(self.critic.pull(made, labels))
        pulls += DRIFT * unit(self.drift.pull(made, labels, drifting(sigma, earlier)))
        return off + targets_pull.norm() * (made * pulls).sum()

    def beginnings(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Growth's, with own pictures instead of the first of the noised avatars."""
        x, sigma, labels, known = draw_starts(self.data, self.phase.batch, NOISED, NOISED_FROM, self.generator)
        if self.own is not None:
            pictures, kept, noise = self.own
            put_own((x, sigma, labels), pictures, kept, (OWN_FROM, (noise * NEXT).clamp(min=OWN_FROM)), self.generator)
            known[: len(pictures)] = self.backgrounds.levelled(without_grain(pictures), kept)
        return x, sigma, labels, known

    def state(self) -> dict[str, Any]:
        """Growth's, the critic's, what drifts, and the model's own pictures."""
        return super().state() | self.critic.state() | self.drift.state() | {"own": self.own}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.critic.restore(state)
        self.drift.restore(state)
        self.own = state["own"]

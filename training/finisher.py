"""The end: what the critic left, without its grain and on backgrounds of one colour, and a critic that sees grain.

As in the polish, what the weights before make, cleaned, is the target for the same start, which a network of this size
reaches only in part: edges stay uneven. So the critic of the phase before goes on, with next to no haze over what it
sees, and pulls each batch some times as hard as the targets do. Most starts are the model's own pictures with new
noise, as second steps have; their targets are these pictures, cleaned: a second step is to better the first one.

The critic asks for pictures that could be avatars and targets for those of before, so kinds get fewer. Drift keeps
them apart, first steps among first ones and second steps among second ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.backgrounds import Backgrounds
from training.data import Avatars
from training.drift import Drift
from training.network import SIGMA_DATA, SIGMA_MAX
from training.picture_critic import PictureCritic, short_memory
from training.polisher import Polisher, distances
from training.recipe import Phase, Recipe
from training.starts import MUCH, draw_starts, kept_of, put_own, rows_of
from training.state import load_state

NOISED, NOISED_FROM = 0.65, 0.2  # share of starts that are pictures with noise, and the least noise of avatars
OWN = 0.6  # share of starts that are the model's own pictures
OWN_FROM, NEXT = 0.3, 1 / 3  # the least noise on those, and the most as a share of what each was made from
PULL, OWN_PULL = 6.0, 2.0  # of the critic, in units of the targets'; how many times as hard on own pictures
DRIFT = 6.0  # of drift, in the same units
FIRST, EARLY, SECOND, LATER, NEITHER = 0, 1, 2, 3, -1  # what drifts together: see `drifting`
SOME = 1.0  # noise through which a picture shows in part


class Finisher(Polisher):
    """Phase "finish". `own` are some pictures of the step before, as they are, an `Own`."""

    kept_for: Phase = "finish"
    share_own: float = OWN
    critic_pull: float = PULL
    drift_pull: float = DRIFT

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        self.critic = PictureCritic(data, self.generator, device, bf16, self.phase.haze)
        self.drift = Drift(data, LATER + 1, self.generator, device, bf16)
        self.backgrounds = Backgrounds(data, device)
        self.optimizer = short_memory(self.unet.parameters(), self.phase.learning_rate)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins as the polish does, with the critic of the phase before where the run has it."""
        super().start_from(weights)
        critic = self.run / "adversarial.state"
        if critic.exists():
            self.critic.restore(load_state(critic, self.device))
        for _ in range(self.phase.ahead):
            x, sigma, labels = self.starts()
            with torch.no_grad():
                made = self.denoise(x, sigma, labels)
            self.critic.learn(made, labels)

    def loss(self) -> Tensor:
        """Of a new batch: its gradient is what critic and targets ask for, its value says little."""
        earlier = self._noise_of_own()
        own = len(earlier)
        x, sigma, labels, target = self.examples()
        made = self.denoise(x, sigma, labels)
        self.own = kept_of(made.detach(), sigma, labels, self.share_own, self.generator)
        off = (self.distance(made, target, sigma, own) * finer(sigma)).mean()
        (targets_pull,) = torch.autograd.grad(off, made, retain_graph=True)
        pull = self.critic.pull(made, labels)
        pull[:own] *= OWN_PULL
        group = drifting(sigma, earlier)
        drift = self.drift.pull(made, labels, group)
        drift *= (1 - (1 - self.phase.first_drift) * (group == FIRST)).view(-1, 1, 1, 1)
        pulls = self.critic_pull * unit(pull) + self.drift_pull * unit(drift)
        return off + targets_pull.norm() * (made * pulls).sum()

    def distance(self, made: Tensor, target: Tensor, sigma: Tensor, own: int) -> Tensor:
        """Of pictures `[B, 3, H, W]`, the first `own` from own ones, to their targets: `[B]`."""
        repeated = (torch.arange(len(made), device=made.device) < own) & (sigma <= MUCH)
        return shown(sigma).masked_fill(~repeated, 1.0) * distances(made, target)

    @torch.no_grad()
    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The polish's, but own pictures, which come first, are to be made of themselves.

        Where noise hides them, and avatars, it is to become what the weights before make of it as noise alone: left to
        itself, a network asked to denoise what cannot be seen makes the mean of it, always the same.
        """
        x, sigma, labels = self.starts()
        hidden = torch.ones_like(sigma, dtype=torch.bool)
        if self.own is not None:
            hidden[: len(self.own[0])] = sigma[: len(self.own[0])] > MUCH
        asked = rows_of(hidden)
        alone = (SIGMA_MAX / sigma).masked_fill(sigma <= MUCH, 1.0)[asked]
        pictures = torch.zeros_like(x)
        pictures[asked] = self.estimate_before(x[asked] * alone.view(-1, 1, 1, 1), sigma[asked] * alone, labels[asked])
        if self.own is not None:
            kept = self.own[0]
            pictures[: len(kept)] = torch.where(hidden[: len(kept), None, None, None], pictures[: len(kept)], kept)
        return x, sigma, labels, self.cleaned(pictures, labels)

    def _noise_of_own(self) -> Tensor:
        return torch.empty(0, device=self.device) if self.own is None else self.own[2]

    def starts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The polish's, with own pictures instead of the first of the noised avatars."""
        size, source = self.phase.batch, self.generator
        x, sigma, labels, _ = draw_starts(self.data, size, NOISED, NOISED_FROM, source)
        if self.own is not None:
            pictures, kept, noise = self.own
            put_own((x, sigma, labels), pictures, kept, (OWN_FROM, (noise * NEXT).clamp(min=OWN_FROM)), source)
        return x, sigma, labels

    def cleaned(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """The polish's, with level backgrounds."""
        return self.backgrounds.levelled(super().cleaned(pictures, labels), labels)

    def state(self) -> dict[str, Any]:
        """The polish's, the critic's, what drifts, and the model's own pictures."""
        return super().state() | self.critic.state() | self.drift.state() | {"own": self.own}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.critic.restore(state)
        self.drift.restore(state)
        self.own = state["own"]


def drifting(sigma: Tensor, earlier: Tensor) -> Tensor:
    """What drifts together: one-step pictures, second steps early and late on the way down, and later steps.

    By noise `[B]`, the first R of which is on own pictures that were made from noise `earlier` `[R]`. Noised avatars do
    not drift, nor own pictures that show through their noise. `[B]`.
    """
    group = torch.full_like(sigma, NEITHER, dtype=torch.int64).masked_fill(sigma == SIGMA_MAX, FIRST)
    own = sigma[: len(earlier)]
    late = torch.full_like(own, LATER, dtype=torch.int64).masked_fill(earlier == SIGMA_MAX, SECOND)
    group[: len(own)] = late.masked_fill(own <= SOME, NEITHER).masked_fill(own > MUCH, EARLY)
    return group


def unit(pull: Tensor) -> Tensor:
    """The same with a norm of 1, unless it is nothing."""
    return pull / pull.norm().clamp(min=1e-12)


def finer(sigma: Tensor) -> Tensor:
    """How much a distance counts that is made of noise `[B]`: the less noise, the smaller a distance that shows."""
    return (1 + (SIGMA_DATA / sigma).square()).pow(0.25)


def shown(sigma: Tensor) -> Tensor:
    """How far a picture shows through noise `[B]`, between 1 and 0: that much it counts as a target."""
    return 1 / (1 + sigma.square())

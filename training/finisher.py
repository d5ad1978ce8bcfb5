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
from training.starts import draw_starts, put_own
from training.state import load_state

NOISED, NOISED_FROM = 0.65, 0.2  # share of starts that are pictures with noise, and the least noise of avatars
OWN, OWN_FROM = 0.6, 0.3  # share of starts that are the model's own pictures, and the least noise of those
HAZE = 0.015  # over what the critic sees
PULL, OWN_PULL = 6.0, 2.0  # of the critic, in units of the targets'; how many times as hard on own pictures
DRIFT, FIRST_DRIFT = 6.0, 0.5  # of drift, in the same units; how many times as hard on one-step pictures
FIRST, SECOND, NEITHER = 0, 1, -1  # one-step pictures, second steps, and the rest, which does not drift
MUCH = 1.0  # noise from which on own pictures are second steps to drift: under less, their pictures are given


class Finisher(Polisher):
    """Phase "finish". `own` are some pictures of the step before, as they are, `[R, 3, H, W]`, and their labels."""

    kept_for: Phase = "finish"
    share_noised: float = NOISED
    share_own: float = OWN
    own: tuple[Tensor, Tensor] | None = None
    noised: Tensor  # avatars under the noise of this step's starts, those included that own pictures replaced

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        self.critic = PictureCritic(data, self.generator, device, bf16, HAZE)
        self.drift = Drift(data, 2, self.generator, device, bf16)
        self.backgrounds = Backgrounds(data, device)
        self.optimizer = short_memory(self.unet, self.phase.learning_rate)

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
        own = self._own_rows()
        x, sigma, labels, target = self.examples()
        made = self.denoise(x, sigma, labels)
        self.own = self.kept(made.detach(), sigma, labels)
        off = self.off(made, target, (x, sigma, labels), own)
        (targets_pull,) = torch.autograd.grad(off, made, retain_graph=True)
        pull = self.critic.pull(made, labels)
        pull[:own] *= OWN_PULL
        group = drifting(sigma, own)
        drift = self.drift.pull(made, labels, group)
        drift[group == FIRST] *= FIRST_DRIFT
        pulls = PULL * unit(pull) + DRIFT * unit(drift)
        return off + targets_pull.norm() * (made * pulls).sum()

    def off(self, made: Tensor, target: Tensor, starts: tuple[Tensor, Tensor, Tensor], own: int) -> Tensor:
        """Mean distance of a batch to its targets; the less noise, the smaller a distance that shows."""
        seen = (1 + (SIGMA_DATA / starts[1]).square()).pow(0.25)
        return (self.distance(made, target, starts, own) * seen).mean()

    def distance(self, made: Tensor, target: Tensor, starts: tuple[Tensor, Tensor, Tensor], own: int) -> Tensor:
        """Of pictures `[B, 3, H, W]`, the first `own` from own ones, to their targets: `[B]`."""
        held = torch.ones(len(made), device=made.device)
        held[:own] = shown(starts[1][:own])
        return held * distances(made, target)

    @torch.no_grad()
    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The polish's, but own pictures, which come first, are to be made of themselves."""
        x, sigma, labels = self.starts()
        rest = slice(self._own_rows(), None)
        pictures = self.estimate_before(x[rest], sigma[rest], labels[rest])
        if self.own is not None:
            pictures = torch.cat([self.own[0], pictures])
        return x, sigma, labels, self.cleaned(pictures, labels)

    def kept(self, made: Tensor, sigma: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Of pictures `[B, 3, H, W]` those to begin at next, and their labels: one-step samples, then any others."""
        order = torch.rand(len(made), generator=self.generator).to(made.device) + (sigma == SIGMA_MAX)
        kept = order.topk(max(1, int(len(made) * self.share_own))).indices
        return made[kept].clamp(-1, 1), labels[kept]

    def _own_rows(self) -> int:
        return 0 if self.own is None else len(self.own[0])

    def starts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The polish's, with own pictures instead of the first of the noised avatars."""
        size, source = self.phase.batch, self.generator
        x, sigma, labels, self.noised = draw_starts(
            self.data, size, self.share_noised, NOISED_FROM, source, self.device
        )
        if self.own is not None:
            put_own((x, sigma, labels), *self.own, OWN_FROM, source)
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


def drifting(sigma: Tensor, own: int) -> Tensor:
    """What drifts together, by noise `[B]` of which the first `own` are on own pictures, on the CPU: `[B]`."""
    group = torch.full((len(sigma),), NEITHER)
    group[(sigma == SIGMA_MAX).cpu()] = FIRST
    group[:own] = torch.where((sigma[:own] > MUCH).cpu(), SECOND, NEITHER)
    return group


def unit(pull: Tensor) -> Tensor:
    """The same with a norm of 1, unless it is nothing."""
    return pull / pull.norm().clamp(min=1e-12)


def shown(sigma: Tensor) -> Tensor:
    """How far a picture shows through noise `[B]`, between 1 and 0: that much it counts as a target."""
    return 1 / (1 + sigma.square())

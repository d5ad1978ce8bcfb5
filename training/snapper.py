"""A touch of real avatars: the model's pictures move some way towards the avatars that they already look like.

What the weights at the phase's start make of some noise, grainy and sometimes two things at once, is most like some
real avatar: that one becomes the target for the same noise. This is a nearest neighbour of a sample; in implicit
maximum likelihood estimation (Li and Malik 2018) it is the other way round. `training/balance.py` makes targets more
varied. A model of one step cannot tell every time which avatar its picture will be like, and makes the median of
those in question: cleaner, and duller. So what is saved lies between the weights before and after (Wortsman et al.
2022, "Robust fine-tuning of zero-shot models").
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.balance import balancing_prices, squared_distances
from training.data import Avatars, to_signed
from training.network import SIGMA_MAX
from training.polisher import Polisher
from training.recipe import CLASSES, Phase, Recipe
from training.sampling import to_uint8
from training.starts import draw_starts

NOISED_FROM = 0.2  # the least noise of starts that are noised pictures
AHEAD = 1024  # samples whose targets are looked for at once: most of the work is to read the avatars
PRICED_BY = 512  # samples of each class by which prices are found
PRICED_FROM = 5.0  # sigma below which prices do not count: there the picture under the noise is to be found
WAY = 0.35  # from the weights before to those after, of what is saved


class Snapper(Polisher):
    """Phase "snap": as the polish, with avatars as targets."""

    kept_for: Phase = "snap"
    replayable = False
    share_noised: float = 0.4  # of starts; the others are noise alone
    share_of_prices: float = 0.3  # with all of them, targets are too far from what the model makes

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        self.prices = [torch.zeros(len(images), device=device) for images in data.images]
        self.ahead: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins with these weights, keeps them for the targets, and finds the prices."""
        super().start_from(weights)
        self._find_prices()

    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next of the batches whose targets are known."""
        if not self.ahead:
            self.ahead = self.look_ahead()
        x, sigma, labels, target = self.ahead.pop()
        return x, sigma, labels, to_signed(target)

    @torch.no_grad()
    def look_ahead(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Batches of x, sigma, labels and the avatars to make of them, uint8 `[B, H, W, 3]`."""
        size = self.phase.batch
        amount, source = max(1, AHEAD // size), self.generator
        batches = [draw_starts(self.data, size, self.share_noised, NOISED_FROM, source)[:3] for _ in range(amount)]
        made = torch.cat([self._made(*batch) for batch in batches])
        sigma, labels = (torch.cat([batch[i] for batch in batches]) for i in (1, 2))
        height = (sigma.clamp(min=PRICED_FROM) / PRICED_FROM).log() / math.log(SIGMA_MAX / PRICED_FROM)
        counts = self.share_of_prices * height
        target = torch.empty_like(made)
        for c in range(len(CLASSES)):
            of_class = labels == c
            pool = self.data.of_class(c, made.device)
            offers = squared_distances(made[of_class], pool) - counts[of_class, None] * self.prices[c]
            target[of_class] = pool[offers.argmin(1)]
        return [(*batch, chosen) for batch, chosen in zip(batches, target.split(size), strict=True)]

    def _made(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Pictures of the weights before, uint8 `[B, H, W, 3]`."""
        return torch.from_numpy(to_uint8(self.estimate_before(x, sigma, labels))).to(self.device)

    @torch.no_grad()
    def _find_prices(self) -> None:
        """By one-step samples of the weights before."""
        labels = torch.arange(len(CLASSES)).repeat_interleave(PRICED_BY).to(self.device)
        made = np.concatenate([to_uint8(self.one_step_before(some)) for some in labels.split(self.phase.batch)])
        for c, pictures in enumerate(torch.from_numpy(made).to(self.device).split(PRICED_BY)):
            distances = squared_distances(pictures, self.data.of_class(c, pictures.device))
            self.prices[c] = balancing_prices(distances, self.data.attributes(c))

    def result(self) -> dict[str, Tensor]:
        """Weights on the way from those before to the average."""
        before = self.before.state_dict()
        return {name: before[name].lerp(value, WAY) for name, value in self.average.weights.items()}

    def state(self) -> dict[str, Any]:
        """The polish's, the prices, and the batches whose targets are known."""
        return super().state() | {"prices": self.prices, "ahead": self.ahead}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.prices, self.ahead = state["prices"], state["ahead"]

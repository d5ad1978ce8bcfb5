"""The end: the polish again, of what the critic left, and second steps that lead towards avatars.

A second step begins at the model's own picture with new noise. Of that much can be seen, unlike in a first step, so the
model can be asked for the training avatar that the picture is most like, as in the last touch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.balance import squared_distances
from training.data import to_signed
from training.network import SIGMA_MAX
from training.polisher import PASSES, Polisher, flattened
from training.recipe import CLASSES, Phase
from training.sampling import to_uint8

OWN = 0.25  # share of starts that are the model's own pictures with noise
OWN_FROM, OWN_TO = 0.2, 5.0  # the noise on them, alike in ln sigma
KEPT = 2048  # own pictures and what they are most like, found once


class Finisher(Polisher):
    """Phase "finish". `made` and `like` are uint8 `[KEPT, S, S, 3]`, one for each of `made_labels`."""

    kept_for: Phase = "finish"
    made: Tensor
    like: Tensor
    made_labels: Tensor

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins as the polish does, and finds out what its pictures are like."""
        super().start_from(weights)
        self._look_at_own()

    @torch.no_grad()
    def _look_at_own(self) -> None:
        """One-step samples of the weights before, filtered, and their nearest training avatars (mean square)."""
        size = self.data.image_size
        self.made_labels = (torch.arange(KEPT) % len(CLASSES)).to(self.device)
        made = []
        for labels in self.made_labels.split(self.phase.batch):
            x = SIGMA_MAX * torch.randn((len(labels), 3, size, size), generator=self.generator).to(self.device)
            sigma = torch.full((len(labels),), SIGMA_MAX, device=self.device)
            picture = self.estimate_before(x.contiguous(memory_format=torch.channels_last), sigma, labels)
            for _ in range(PASSES):
                picture = flattened(picture)
            made.append(torch.from_numpy(to_uint8(picture)).to(self.device))
        self.made = torch.cat(made)
        self.like = torch.empty_like(self.made)
        for c in range(len(CLASSES)):
            of_class = self.made_labels == c
            pool = torch.from_numpy(self.data.images[c]).to(self.device)
            self.like[of_class] = pool[squared_distances(self.made[of_class], pool).argmin(1)]

    @torch.no_grad()
    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The polish's, with the model's own pictures instead of the first of the noised avatars."""
        x, sigma, labels, target = super().examples()
        rows = max(1, int(len(x) * OWN))
        chosen = torch.randint(KEPT, (rows,), generator=self.generator).to(self.device)
        place = torch.rand(rows, generator=self.generator).to(self.device)
        sigma[:rows] = OWN_FROM * (OWN_TO / OWN_FROM) ** place
        noise = torch.randn(x[:rows].shape, generator=self.generator).to(self.device)
        x[:rows] = to_signed(self.made[chosen]) + sigma[:rows].view(-1, 1, 1, 1) * noise
        labels[:rows] = self.made_labels[chosen]
        target[:rows] = to_signed(self.like[chosen])
        return x, sigma, labels, target

    def state(self) -> dict[str, Any]:
        """The polish's, and the pictures looked at."""
        return super().state() | {"made": self.made, "like": self.like, "made_labels": self.made_labels}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.made, self.like, self.made_labels = state["made"], state["like"], state["made_labels"]

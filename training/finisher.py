"""The end: the polish again, of what the critic left, and second steps that keep what the first one drew.

A second step begins at the model's own picture with new noise. The polish knows noised avatars only, and what it makes
of noised pictures of its own is softer than they were; here the same picture is the target.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.data import to_signed
from training.polisher import PASSES, Polisher, flattened
from training.recipe import CLASSES, Phase
from training.sampling import to_uint8

OWN = 0.25  # share of starts that are the model's own pictures with noise
OWN_FROM, OWN_TO = 0.2, 5.0  # the noise on them, alike in ln sigma
KEPT = 2048  # own pictures, made once


class Finisher(Polisher):
    """Phase "finish". `own` are uint8 pictures `[KEPT, S, S, 3]`, of the classes 0, 1, ..., 9, 0, ... in turn."""

    kept_for: Phase = "finish"
    own: Tensor

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins as the polish does, and makes some pictures."""
        super().start_from(weights)
        self.own = self.one_step_pictures()

    @torch.no_grad()
    def one_step_pictures(self) -> Tensor:
        """Samples of the weights before, filtered as targets are."""
        made = []
        for labels in (torch.arange(KEPT) % len(CLASSES)).to(self.device).split(self.phase.batch):
            picture = self.one_step_before(labels)
            for _ in range(PASSES):
                picture = flattened(picture)
            made.append(torch.from_numpy(to_uint8(picture)).to(self.device))
        return torch.cat(made)

    @torch.no_grad()
    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The polish's, with the model's own pictures instead of the first of the noised avatars."""
        x, sigma, labels, target = super().examples()
        rows = max(1, int(len(x) * OWN))
        chosen = torch.randint(KEPT, (rows,), generator=self.generator).to(self.device)
        place = torch.rand(rows, generator=self.generator).to(self.device)
        noise = torch.randn(x[:rows].shape, generator=self.generator).to(self.device)
        sigma[:rows] = OWN_FROM * (OWN_TO / OWN_FROM) ** place
        labels[:rows] = chosen % len(CLASSES)
        target[:rows] = to_signed(self.own[chosen])
        x[:rows] = target[:rows] + sigma[:rows].view(-1, 1, 1, 1) * noise
        return x, sigma, labels, target

    def state(self) -> dict[str, Any]:
        """The polish's, and the model's own pictures."""
        return super().state() | {"own": self.own}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.own = state["own"]

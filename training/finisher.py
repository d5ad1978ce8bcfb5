"""The end: the polish again, of what the critic left, on backgrounds of one colour, in second steps, too.

A second step begins at the model's own picture with new noise; the polish knows noised avatars only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.backgrounds import Backgrounds
from training.data import Avatars, to_signed
from training.polisher import Polisher
from training.recipe import CLASSES, Phase, Recipe
from training.sampling import to_uint8
from training.starts import put_own

OWN, OWN_FROM = 0.25, 0.1  # share of starts that are the model's own pictures, and the least noise of those
KEPT = 2048  # own pictures, made once


class Finisher(Polisher):
    """Phase "finish". `own` are uint8 pictures `[KEPT, S, S, 3]`, of the classes 0, 1, ..., 9, 0, ... in turn."""

    kept_for: Phase = "finish"
    own: Tensor

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        self.backgrounds = Backgrounds(data, device)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins as the polish does, and makes some pictures."""
        super().start_from(weights)
        self.own = self.one_step_pictures()

    @torch.no_grad()
    def one_step_pictures(self) -> Tensor:
        """Samples of the weights before, cleaned."""
        batches = (torch.arange(KEPT) % len(CLASSES)).to(self.device).split(self.phase.batch)
        made = [to_uint8(self.cleaned(self.one_step_before(labels), labels)) for labels in batches]
        return torch.from_numpy(np.concatenate(made)).to(self.device)

    def starts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The polish's, with the model's own pictures instead of the first of the noised avatars."""
        starts = super().starts()
        chosen = torch.randint(KEPT, (max(1, int(len(starts[0]) * OWN)),), generator=self.generator).to(self.device)
        put_own(starts, to_signed(self.own[chosen]), chosen % len(CLASSES), OWN_FROM, self.generator)
        return starts

    def cleaned(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """The polish's, with level backgrounds."""
        return self.backgrounds.levelled(super().cleaned(pictures, labels), labels)

    def state(self) -> dict[str, Any]:
        """The polish's, and the model's own pictures."""
        return super().state() | {"own": self.own}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.own = state["own"]

"""One step learns what a diffusion model makes of the same noise, with a critic for what distances leave soft.

As in Kang et al. 2024 ("Distilling Diffusion Models into Conditional GANs"), targets are pairs made beforehand
(`training/pairs.py`), and what a network sees in two pictures counts beside their values. Pictures are as varied as
the diffusion model's, for each noise has one of its own to become; critic and drift are those of the finish.

Under so much noise that a picture hardly shows, the way from noise to picture is nearly straight, so the same pairs
hold there. Under less, avatars and the model's own pictures are to be found again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from training.data import Avatars
from training.finisher import NEXT, OWN_FROM, Finisher, shown
from training.network import SIGMA_MAX
from training.pairs import Pairs
from training.polisher import distances
from training.recipe import Phase, Recipe
from training.starts import MUCH, put_own

NOISED, NOISED_FROM = 0.4, 0.2  # share of starts that are pictures with noise, and the least noise of avatars
OWN = 0.3  # share of starts that are the model's own pictures
ALONE = 0.6  # of the others, the share that begins at the most noise
SEEN = 0.5  # weight of what a network sees in two pictures, beside the distance of their values


class Paired(Finisher):
    """Phase "pair". FileNotFoundError if the run has no pairs."""

    kept_for: Phase = "pair"
    share_own = OWN
    critic_pull, drift_pull = 3.0, 3.0  # targets are to be reached, not only to hold

    def __init__(self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool) -> None:
        super().__init__(recipe, data, run, device, bf16, compiled)
        self.pairs = Pairs(run / "pairs.safetensors", device, self.cleaned)

    def starts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Those of examples."""
        return self.examples()[:3]

    @torch.no_grad()
    def examples(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Own pictures, then avatars, with noise, each its own target; then pairs."""
        size, source = self.phase.batch, self.generator
        noise, target, labels = self.pairs.batch(size, source)
        place = torch.rand(size, generator=source, device=noise.device)
        noised = max(1, int(size * NOISED))
        sigma = MUCH * (SIGMA_MAX / MUCH) ** place
        sigma[noised + int((size - noised) * (1 - ALONE)) :] = SIGMA_MAX
        sigma[:noised] = NOISED_FROM * (MUCH / NOISED_FROM) ** place[:noised]
        x = noise * sigma.view(-1, 1, 1, 1)
        target[:noised], labels[:noised] = self.data.batch(noised, source)
        x[:noised] += target[:noised]
        if self.own is not None:
            pictures, kept, earlier = self.own
            most = (earlier * NEXT).clamp(OWN_FROM, MUCH)
            put_own((x, sigma, labels), pictures, kept, (OWN_FROM, most), source)
            target[: len(pictures)] = self.cleaned(pictures, kept)
        return x.contiguous(memory_format=torch.channels_last), sigma, labels, target

    def distance(self, made: Tensor, target: Tensor, sigma: Tensor, own: int) -> Tensor:
        """Of pictures `[B, 3, H, W]` to their targets, by values and by what a network sees in them: `[B]`."""
        with torch.no_grad():
            wanted = self.drift.views.maps(target)
        maps = zip(self.drift.views.maps(made), wanted, strict=True)
        seen = torch.stack([(one - other).abs().mean((1, 2, 3)) / other.abs().mean() for one, other in maps])
        known = shown(sigma).masked_fill(sigma > MUCH, 1.0)
        return known * (distances(made, target) + SEEN * seen.mean(0))

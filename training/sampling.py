"""Samplers for evaluation: consistency steps as diffusers takes them, and Heun's method for the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from service.diffusion.schedule import NoiseSchedule
from training.network import SIGMA_MAX, SIGMA_MIN, Denoiser

SCHEDULE = NoiseSchedule()


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per picture, so that a picture does not depend on its batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(rows: list[torch.Generator], size: int, device: str) -> Tensor:
    """The next noise of every row: float32 `[B, 3, H, W]`."""
    return torch.cat([torch.randn(1, 3, size, size, generator=row) for row in rows]).to(device)


@torch.no_grad()
def consistency_sample(
    denoise: Denoiser, labels: Tensor, seeds: Sequence[int], size: int, timesteps: Sequence[int]
) -> Tensor:
    """Multistep sampling (Song et al. 2023, algorithm 1) at diffusers' `timesteps`: `[B, 3, H, W]` in [-1, 1]."""
    rows, device = generators(seeds), str(labels.device)
    sigmas = SCHEDULE.sigmas(timesteps)
    x = draw(rows, size, device) * SIGMA_MAX
    for i, sigma in enumerate(sigmas):
        if i > 0:
            x = x + draw(rows, size, device) * (sigma**2 - SIGMA_MIN**2) ** 0.5
        x = denoise(x, torch.full((len(x),), sigma, device=device), labels).clamp(-1, 1)
    return x


@torch.no_grad()
def second_steps(
    denoise: Denoiser, labels: Tensor, seeds: Sequence[int], size: int, indices: Sequence[int]
) -> dict[int, Tensor]:
    """What `consistency_sample` gives at `[index, 0]` for each index; the first step is taken once."""
    rows, device = generators(seeds), str(labels.device)

    def estimate(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, torch.full((len(x),), sigma, device=device), labels).clamp(-1, 1)

    first = estimate(draw(rows, size, device) * SIGMA_MAX, SIGMA_MAX)
    noise = draw(rows, size, device)
    levels = {index: SCHEDULE.sigma_at(index) for index in indices}
    return {i: estimate(first + noise * (s**2 - SIGMA_MIN**2) ** 0.5, s) for i, s in levels.items()}


@torch.no_grad()
def heun_sample(denoise: Denoiser, labels: Tensor, seeds: Sequence[int], size: int, steps: int = 18) -> Tensor:
    """Deterministic second-order sampling of a diffusion model (Karras et al. 2022, algorithm 1).

    The last level before 0 is above sigma_min, at which these networks leave a picture as it is: it has no slope there.
    """
    device = str(labels.device)
    x = draw(generators(seeds), size, device) * SIGMA_MAX
    sigmas = [*NoiseSchedule(num_train_timesteps=steps + 1).sigmas(range(steps - 1, -1, -1)), 0.0]

    def slope(at: Tensor, sigma: float) -> Tensor:
        return (at - denoise(at, torch.full((len(at),), sigma, device=device), labels)) / sigma

    for sigma, following in pairwise(sigmas):
        first = slope(x, sigma)
        ahead = x + (following - sigma) * first
        if following > 0:
            ahead = x + (following - sigma) * 0.5 * (first + slope(ahead, following))
        x = ahead
    return x.clamp(-1, 1)


def to_uint8(images: Tensor) -> np.ndarray:
    """`[B, 3, H, W]` in [-1, 1] to uint8 `[B, H, W, 3]`, rounded as the service rounds."""
    pixels = (images / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()

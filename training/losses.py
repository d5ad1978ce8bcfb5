"""The two losses: denoising (EDM) and consistency (ECT), in the boundary parameterisation.

Karras et al. 2022, "Elucidating the Design Space"; Geng et al. 2024, "Consistency Models Made Easy".
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.network import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, Denoiser, boundary_scalings
from training.recipe import PhaseSettings
from training.starts import rows_of


def draw_sigma(size: int, phase: PhaseSettings, generator: torch.Generator) -> Tensor:
    """Noise levels `[B]` on the generator's device: ln sigma ~ N(p_mean, p_std), clamped to the schedule's range."""
    sigma = (phase.p_mean + phase.p_std * torch.randn(size, generator=generator, device=generator.device)).exp()
    return sigma.clamp(SIGMA_MIN, SIGMA_MAX)


def nearer_sigma(t: Tensor, stage: int, q: float) -> Tensor:
    """r <= t, the level whose estimate is the target at t; sigma_min means the clean image."""
    gap = q ** -(stage + 1) * (1 + 8 * torch.sigmoid(-t))
    return (t * (1 - gap)).clamp(min=SIGMA_MIN)


def stage_of(done: int, phase: PhaseSettings) -> int:
    """The stage after `done` images: stages of equal length, from `first_stage` on."""
    return phase.first_stage + min(done * phase.stages // phase.images, phase.stages - 1)


def pseudo_huber(difference: Tensor) -> Tensor:
    """Distance of each row `[B]`, with c = 0.00054 sqrt(d) (Song and Dhariwal 2023)."""
    flat = difference.flatten(1)
    c = 0.00054 * flat.shape[1] ** 0.5
    return (flat.square().sum(1) + c**2).sqrt() - c


def denoising_loss(denoised: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Loss of each row `[B]` of estimates at sigma: squared error per value, weighted to be of the order of one."""
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return weight * (denoised - x0).square().flatten(1).mean(1)


def consistency_loss(
    denoise: Denoiser, x0: Tensor, labels: Tensor, t: Tensor, r: Tensor, noise: Tensor, balanced: bool = False
) -> Tensor:
    """Loss of each row `[B]`: distance between the estimates at t and, without gradient, at r.

    Both sides share the noise. Rows with r at sigma_min have the clean image as target and cost a CPU no second
    forward. The weight is 1 / (t - r). The network's output enters the estimate times c_out, which is t at low
    noise but never more than sigma_data, so gradients fade as 1 / t at high noise; `balanced` multiplies by
    t / c_out, which makes them alike at every level.
    """
    target = x0.clone()
    rows = rows_of(r > SIGMA_MIN)  # where r is sigma_min, the estimate is what it is made of
    if len(rows):
        clean = (r <= SIGMA_MIN)[rows].view(-1, 1, 1, 1)
        with torch.no_grad():
            noisy = x0[rows] + noise[rows] * r[rows].view(-1, 1, 1, 1)
            target[rows] = torch.where(clean, x0[rows], denoise(noisy, r[rows], labels[rows]))
    denoised = denoise(x0 + noise * t.view(-1, 1, 1, 1), t, labels)
    weight = 1 / (t - r).clamp(min=1e-6)
    if balanced:
        weight = weight * t / boundary_scalings(t)[1].clamp(min=1e-6)
    return weight * pseudo_huber(denoised - target)

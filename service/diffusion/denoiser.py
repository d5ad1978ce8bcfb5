"""Boundary-form denoiser of a consistency model, over rows that each have their own sigma.

Source: Song et al. 2023, appendix C; `CMStochasticIterativeScheduler.get_scalings_for_boundary_condition`,
which however keeps one step index for a whole batch. Rows here share nothing but the network forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from service.diffusion.schedule import NoiseSchedule, time_input
from service.diffusion.transfer import upload


class Network(Protocol):
    """The raw network: `(x [B, C, H, W], time [B] float32, class_labels [B] int64 or None) -> [B, C, H, W]`.

    Images are on the network's device; times and labels, a number for each row, on the CPU.
    """

    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor | None, /) -> Tensor:
        """Model output for each row."""


def per_row(values: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """One float32 number per row as `[B, 1, 1, 1]`, ready to multiply images with."""
    return upload(torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1), device)


def network_time(sigmas: Sequence[float]) -> Tensor:
    """Network time of each row `[B]` on the CPU: computed in float64, rounded once to float32."""
    return torch.tensor([time_input(sigma) for sigma in sigmas], dtype=torch.float32)


def boundary_scalings(sigma: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and 1 / c_in for each sigma, in sigma's shape. The identity at `sigma_min`."""
    variance = sigma**2 + schedule.sigma_data**2
    c_skip = schedule.sigma_data**2 / ((sigma - schedule.sigma_min) ** 2 + schedule.sigma_data**2)
    c_out = (sigma - schedule.sigma_min) * schedule.sigma_data / variance**0.5
    return c_skip, c_out, variance**0.5


def denoise(
    network: Network, x: Tensor, sigmas: Sequence[float], class_labels: Tensor | None, schedule: NoiseSchedule
) -> Tensor:
    """x0 estimate of each row of `x` `[B, C, H, W]` at its own sigma, clamped if the schedule says so."""
    c_skip, c_out, inverse_c_in = boundary_scalings(per_row(sigmas, x.device), schedule)
    model_output = network(x / inverse_c_in, network_time(sigmas), class_labels)
    denoised = c_out * model_output + c_skip * x
    return denoised.clamp(-1, 1) if schedule.clip_denoised else denoised

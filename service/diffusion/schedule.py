"""Noise schedule of a consistency model: which sigmas a run visits.

Pure Python in float64, so that the HTTP process can use it without torch. The reference is
`diffusers.CMStochasticIterativeScheduler.set_timesteps` (Karras et al. 2022, eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class NoiseSchedule(msgspec.Struct, frozen=True):
    """Constants of a consistency model's noise levels (Song et al. 2023, appendix C)."""

    num_train_timesteps: int = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    s_noise: float = 1.0
    clip_denoised: bool = True

    def sigma_at(self, index: int) -> float:
        """Sigma at a grid index in 0..num_train_timesteps-1; index 0 is `sigma_max`."""
        ramp = index / (self.num_train_timesteps - 1)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return float((high + ramp * (low - high)) ** self.rho)

    def sigmas(self, timesteps: Sequence[int]) -> tuple[float, ...]:
        """Sigmas in order of visit for diffusers' strictly descending `timesteps`: `[22, 0]` visits 0 first."""
        return tuple(self.sigma_at(index) for index in reversed(timesteps))

    def evenly_spaced(self, num_inference_steps: int) -> list[int]:
        """Timesteps for `num_inference_steps` as diffusers spaces them, descending: 2 of 40 is `[20, 0]`."""
        ratio = self.num_train_timesteps // num_inference_steps
        return [i * ratio for i in reversed(range(num_inference_steps))]


def time_input(sigma: float) -> float:
    """Network time of a noise level: 250 ln(sigma), as `CMStochasticIterativeScheduler.sigma_to_t`."""
    return 250.0 * math.log(sigma + 1e-44)

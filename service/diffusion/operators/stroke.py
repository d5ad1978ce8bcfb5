"""Stroke-guided generation (SDEdit): a painting is noised to a middle level and denoised from there.

Song et al. 2023, appendix D; Meng et al. 2021. The run's first noise level decides how much of the painting
survives; see `start_index`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.diffusion.operators.base import Edit, Opening, as_tensor
from service.diffusion.schedule import NoiseSchedule

if TYPE_CHECKING:
    from torch import Tensor


class Stroke(Edit, frozen=True, tag="stroke"):
    """Begins at `image`, noised to the first level of the run."""

    image: bytes  # uint8 [H, W, C]

    def first_state(self, opening: Opening) -> Tensor:
        """The image plus noise of the run's first level."""
        return as_tensor(self.image, opening.latents) + opening.sigma * opening.latents


def start_index(strength: float, schedule: NoiseSchedule) -> int:
    """Grid index at which a run of that `strength` in (0, 1] begins; 1 is index 0, pure noise."""
    return round((1 - strength) * (schedule.num_train_timesteps - 1))

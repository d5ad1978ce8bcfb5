"""Denoising in one pass, from any noise level: what a consistency model is by definition (section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from service.diffusion.operators.base import Edit, Opening, as_tensor

if TYPE_CHECKING:
    from torch import Tensor


class Denoise(Edit, frozen=True, tag="denoise"):
    """Begins at `image` plus noise of the run's only level, or at what is already that noisy."""

    image: bytes  # uint8 [H, W, C]; if noisy, float32 [C, H, W] in [-1, 1] scale, C order, little-endian
    noisy: bool = False

    def first_state(self, opening: Opening) -> Tensor:
        """The noisy image."""
        if not self.noisy:
            return as_tensor(self.image, opening.latents) + opening.sigma * opening.latents
        values = np.frombuffer(self.image, "<f4").reshape(tuple(opening.latents.shape))
        return opening.latents.new_tensor(values)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Whether noise was added."""
        return (("noisy", "given by the client"),) if self.noisy else ()

"""Colorization: the luma of the image is kept, its colours are made.

Song et al. 2023, appendix D; `iterative_colorization` in openai/consistency_models `cm/karras_diffusion.py`.
There an orthogonal 3 x 3 matrix whose first column is the luma direction turns colours into a luma and two free
coordinates, and the first is replaced. Replacing one coordinate of an orthonormal basis is a step along its
direction, so that no matrix is needed here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from service.diffusion.operators.base import Edit, Opening, as_tensor, beside, pulled_in

if TYPE_CHECKING:
    from torch import Tensor

LUMA = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue in the published code
_LENGTH = math.hypot(*LUMA)


def luma(image: Tensor) -> Tensor:
    """Weighted sum of the three channels of `[B, 3, H, W]` as `[B, 1, H, W]`."""
    return LUMA[0] * image[:, 0:1] + LUMA[1] * image[:, 1:2] + LUMA[2] * image[:, 2:3]


class Colorize(Edit, frozen=True, tag="colorize"):
    """Keeps the luma of `image`."""

    image: bytes  # uint8 [H, W, 3]

    def first_state(self, opening: Opening) -> Tensor:
        """Algorithm 4, line 1: the luma part, plus noise of the highest level."""
        return self.operator(opening.latents).known_part() + opening.schedule.sigma_max * opening.latents

    def operator(self, like: Tensor) -> KnownLuma:
        """Puts the luma back."""
        return KnownLuma(as_tensor(self.image, like))


class KnownLuma:
    """Replaces the luma coordinate of every pixel."""

    def __init__(self, image: Tensor) -> None:
        self._luma = luma(image)
        self._direction = beside(image, np.array(LUMA, np.float32).reshape(1, 3, 1, 1)) / _LENGTH**2

    def known_part(self) -> Tensor:
        """The image's part along the luma direction; the free part is 0."""
        return self._luma * self._direction

    def __call__(self, denoised: Tensor, /) -> Tensor:
        """The estimate, moved along the luma direction to the image's luma."""
        return denoised + (self._luma - luma(denoised)) * self._direction

    def pull_in(self, image: Tensor, /) -> Tensor:
        """Colours out of range go toward the grey of their luma."""
        return pulled_in(image, self._luma / sum(LUMA), (1,))

"""Inpainting: the pixels under the mask are made, all others stay exactly as they are.

Song et al. 2023, appendix D; `iterative_inpainting` in openai/consistency_models `cm/karras_diffusion.py`,
which takes -1 for the unknown part where the paper's algorithm 4 and this take 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from service.diffusion.operators.base import Edit, Opening, as_tensor, beside

if TYPE_CHECKING:
    from torch import Tensor


class Inpaint(Edit, frozen=True, tag="inpaint"):
    """Keeps the pixels where `mask` is 0."""

    image: bytes  # uint8 [H, W, C]
    mask: bytes  # uint8 [H, W], 1: repaint, 0: keep

    def first_state(self, opening: Opening) -> Tensor:
        """Algorithm 4, line 1: the known part, plus noise of the highest level."""
        return self.operator(opening.latents).known_part() + opening.schedule.sigma_max * opening.latents

    def operator(self, like: Tensor) -> KnownPixels:
        """Puts the known pixels back."""
        height, width = like.shape[-2:]
        mask = np.frombuffer(self.mask, np.uint8).reshape(1, 1, height, width) != 0
        return KnownPixels(as_tensor(self.image, like), beside(like, mask))


class KnownPixels:
    """Replaces known pixels by selection, without arithmetic: they come back bit for bit."""

    def __init__(self, image: Tensor, repaint: Tensor) -> None:
        self._image = image
        self._repaint = repaint  # bool [1, 1, H, W]

    def known_part(self) -> Tensor:
        """The image, 0 where it is to be made."""
        return self._image.masked_fill(self._repaint, 0)

    def __call__(self, denoised: Tensor, /) -> Tensor:
        """The estimate where the mask is, the image elsewhere."""
        return denoised.where(self._repaint, self._image)

    def pull_in(self, image: Tensor, /) -> Tensor:
        """Nothing to do: the constraint pushes no colour out of range."""
        return image

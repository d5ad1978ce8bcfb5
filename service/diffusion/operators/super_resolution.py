"""Super-resolution: the mean of every block is kept, the detail in it is made.

Song et al. 2023, appendix D; `iterative_superres` in openai/consistency_models `cm/karras_diffusion.py`. There an
orthogonal matrix whose first column is constant turns a block's pixels into its mean and free coordinates, and
the first is replaced. That adds one number to all pixels of a block, which is what is done here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.diffusion.operators.base import Edit, Opening, as_tensor, pulled_in

if TYPE_CHECKING:
    from torch import Tensor


class SuperResolution(Edit, frozen=True, tag="super-resolution"):
    """Keeps the means of the blocks of `image`, `factor` pixels wide and high."""

    image: bytes  # uint8 [H, W, C]; a small picture comes replicated block by block
    factor: int  # divides H and W

    def first_state(self, opening: Opening) -> Tensor:
        """Algorithm 4, line 1: the means, plus noise of the highest level."""
        return self.operator(opening.latents).known_part() + opening.schedule.sigma_max * opening.latents

    def operator(self, like: Tensor) -> KnownMeans:
        """Puts the means back."""
        return KnownMeans(as_tensor(self.image, like), self.factor)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """The factor."""
        return (("factor", str(self.factor)),)


class KnownMeans:
    """Replaces the mean of every block, channel by channel."""

    def __init__(self, image: Tensor, factor: int) -> None:
        self._shape = image.shape
        _, channels, height, width = image.shape
        self._blocked = (1, channels, height // factor, factor, width // factor, factor)
        self._means = self._means_of(image.view(self._blocked))

    @staticmethod
    def _means_of(blocks: Tensor) -> Tensor:
        return blocks.mean((3, 5), keepdim=True)

    def known_part(self) -> Tensor:
        """The means, each spread over its block."""
        return self._means.expand(self._blocked).reshape(self._shape)

    def __call__(self, denoised: Tensor, /) -> Tensor:
        """The estimate, each block shifted to its mean."""
        blocks = denoised.reshape(self._blocked)
        return (blocks + (self._means - self._means_of(blocks))).view(self._shape)

    def pull_in(self, image: Tensor, /) -> Tensor:
        """Blocks that left the range lose contrast around their mean."""
        return pulled_in(image.reshape(self._blocked), self._means, (3, 5)).view(self._shape)

"""Interpolation between two pictures: the first draws of two seeds, spherically interpolated.

Song et al. 2023, appendix D. Later draws are those of the sample's own seed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from service.diffusion.operators.base import Edit, Opening

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 1e-6  # sine of an angle below which the straight line is the arc


class Interpolate(Edit, frozen=True, tag="interpolate"):
    """Begins at share `t` of the way from the first draw of the sample's seed to that of `seed_to`."""

    seed_to: int
    t: float  # 0: the sample's own seed, 1: seed_to; both ends exactly

    def first_state(self, opening: Opening) -> Tensor:
        """The interpolated draw at the highest level."""
        draw = slerp(opening.latents, opening.first_draw(self.seed_to), self.t)
        return draw * opening.schedule.sigma_max

    @property
    def way(self) -> float:
        """`t`."""
        return self.t

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Where it leads, and how far along this one is."""
        return (("seed_to", str(self.seed_to)), ("t", repr(self.t)))


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Spherical interpolation of two CPU tensors of one shape; `start` at 0, `end` at 1, bit for bit."""
    # Not torch's sum: its order, and so its last bit, depends on the number of threads.
    a, b = (np.asarray(tensor.numpy(), np.float64).ravel() for tensor in (start, end))
    cosine = float((a * b).sum()) / math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < PARALLEL:
        return start + t * (end - start)
    return math.sin((1 - t) * angle) / math.sin(angle) * start + math.sin(t * angle) / math.sin(angle) * end

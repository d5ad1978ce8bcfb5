"""What the service knows of a model without torch: identity, shape, classes, noise schedule."""

from __future__ import annotations

from pathlib import Path

import msgspec

from service.diffusion.schedule import NoiseSchedule


class ClassInfo(msgspec.Struct, frozen=True):
    """One class of a class-conditional model."""

    index: int
    name: str
    slug: str  # unique within the model, for URLs; never all digits, never "any"


class ModelInfo(msgspec.Struct, frozen=True):
    """A served model, read from its folder's configuration and file headers."""

    name: str  # served name, a slug [A-Za-z0-9._-]+
    path: Path  # diffusers folder on disk
    revision: str  # "sha256:<hex>" of weights and configuration
    image_size: int  # pixels; images are square
    channels: int
    num_classes: int | None  # None: unconditional
    classes: tuple[ClassInfo, ...]  # empty for an unconditional model, else one for each index
    schedule: NoiseSchedule
    license: str | None = None

    @property
    def class_conditional(self) -> bool:
        """Whether the network takes a class label."""
        return self.num_classes is not None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image's state."""
        return (self.channels, self.image_size, self.image_size)

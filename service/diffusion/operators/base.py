"""What an edit is: how a sample's run begins, and what happens to each of its x0 estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from service.diffusion.schedule import NoiseSchedule

if TYPE_CHECKING:
    from torch import Tensor

TAG_FIELD = "edit"


@dataclass(frozen=True, slots=True)
class Opening:
    """What the first state of a run is made of; tensors are float32 `[1, C, H, W]` on the CPU."""

    latents: Tensor  # the first draw of the sample's seed, unit variance
    sigma: float  # the first noise level the run visits
    schedule: NoiseSchedule
    first_draw: Callable[[int], Tensor]  # of any other seed


class Operator(Protocol):
    """What happens to one sample's x0 estimates; all tensors are float32 `[1, C, H, W]`, in [-1, 1] scale."""

    def __call__(self, denoised: Tensor, /) -> Tensor:
        """The estimate with the kept quantity replaced: an orthogonal projection, as published."""

    def pull_in(self, image: Tensor, /) -> Tensor:
        """The last estimate, brought into [-1, 1] along the free directions: the kept quantity stays."""


class Edit(msgspec.Struct, frozen=True, tag_field=TAG_FIELD):
    """Base of all edits. A subclass gives a `tag`, which is its name in routes and pictures."""

    def first_state(self, opening: Opening) -> Tensor:
        """The first x `[1, C, H, W]` of the run."""
        raise NotImplementedError

    def operator(self, like: Tensor) -> Operator | None:
        """The operator of this edit on the device of `like` `[1, C, H, W]`; None when it only begins a run."""
        return None

    def facts(self) -> tuple[tuple[str, str], ...]:
        """The edit's parameters in words of Latin-1, as a picture carries them; no image data."""
        return ()

    @property
    def way(self) -> float | None:
        """How far along a way of pictures this one is, in [0, 1]; None when it is on none."""
        return None


def edit_name(edit: Edit) -> str:
    """The edit's tag: `inpaint`, `super-resolution`, ..."""
    return str(type(edit).__struct_config__.tag)


def as_tensor(pixels: bytes, like: Tensor) -> Tensor:
    """uint8 pixels `[H, W, C]` as float32 `[1, C, H, W]` in [-1, 1]; shape and device are those of `like`."""
    _, channels, height, width = like.shape
    values = np.frombuffer(pixels, np.uint8).reshape(1, height, width, channels).transpose(0, 3, 1, 2)
    return beside(like, np.ascontiguousarray(values, np.float32) / np.float32(127.5) - np.float32(1))


def beside(like: Tensor, values: np.ndarray) -> Tensor:
    """An array as a tensor of its shape and dtype on the device of `like`, which is not waited for."""
    import torch  # here, for the HTTP process knows edits, too, and has no torch

    from service.diffusion.transfer import upload

    return upload(torch.from_numpy(values), like.device)


def pulled_in(image: Tensor, centre: Tensor, dims: tuple[int, ...]) -> Tensor:
    """`image` with each group of values along `dims` drawn toward its `centre` until all lie in [-1, 1].

    The centre is the group's kept quantity spread evenly (broadcast over `dims`), so moving along `image -
    centre` leaves it as it is. Groups that are in range come back untouched.
    """
    centre = centre.clamp(-1, 1)
    offset = image - centre
    room = (1 - centre).where(offset > 0, 1 + centre)
    share = (room / offset.abs()).amin(dims, keepdim=True).clamp(max=1)  # 0 / 0 is where nothing has to move
    outside = (image.abs() > 1).any(dims[0], keepdim=True)
    for dim in dims[1:]:
        outside = outside.any(dim, keepdim=True)
    return (centre + share.nan_to_num(nan=0.0) * offset).where(outside, image)

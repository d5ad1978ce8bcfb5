"""Takes finished images off the device as bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from service.diffusion.sampling import quantise, to_unit_range
from service.engine.request import Pixels

CopyOut = Callable[[Tensor], Callable[[], Tensor]]


class Collected:
    """Images on their way to the host. Made without waiting for the device."""

    def __init__(self, images: Sequence[Tensor], kinds: Sequence[Pixels], copy_out: CopyOut) -> None:
        """`images` are `[C, H, W]` in [-1, 1] on the device; `kinds` says for each what is wanted of it."""
        self._count = len(images)
        self._parts = []
        for kind in ("uint8", "float32"):
            members = [i for i, each in enumerate(kinds) if each == kind]
            if members:
                chosen = torch.stack([images[i] for i in members])
                finite = torch.isfinite(chosen).flatten(1).all(1)
                unit = to_unit_range(chosen).permute(0, 2, 3, 1).contiguous()
                pixels = quantise(unit) if kind == "uint8" else unit
                self._parts.append((members, copy_out(finite), copy_out(pixels)))

    def wait(self) -> list[bytes | None]:
        """Each image as `[H, W, C]` bytes, uint8 or float32 in [0, 1]; None for one that is not finite."""
        results: list[bytes | None] = [None] * self._count
        for members, finite, pixels in self._parts:
            for i, good, picture in zip(members, finite().tolist(), pixels().numpy(), strict=True):
                results[i] = picture.tobytes() if good else None
        return results

"""Backgrounds of one colour, as avatars have them: the model's own shade from one pastel into another.

Used beside the critic and for the finish. Distances and critics hardly notice a slow change of colour; the eye does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.data import Avatars, to_signed

STEP = 0.06  # to a neighbour within a background, at most, in units of values in [-1, 1]
OFF = 0.47  # from the middle colour of the border, at most
COMMON = 0.01  # share of avatars that a background's colour has at least
AT_ONCE = 4  # pixels by which a background grows before it is seen whether that was the last
LOOKED_AT = 500  # avatars of each class
USUAL, MORE = 0.9, 0.05  # quantile of how much of an avatar is background; if so much more, the drawing is in it, too


class Backgrounds:
    """What backgrounds the avatars have: `colours` `[K, 3]` in [-1, 1], and per class the `largest` share `[C]`."""

    def __init__(self, data: Avatars, device: str) -> None:
        some = [torch.from_numpy(images[:LOOKED_AT]) for images in data.images]
        corners = np.concatenate([pictures[:, 0, 0].numpy() for pictures in some])
        found, counts = np.unique(corners, axis=0, return_counts=True)
        common = found[counts >= COMMON * len(corners)]
        self.colours = (torch.from_numpy(common).float() / 127.5 - 1).to(device)
        shares = [background(to_signed(pictures.to(device))).float().mean((1, 2)).quantile(USUAL) for pictures in some]
        self.largest = (torch.stack(shares) + MORE).to(device)

    def levelled(self, pictures: Tensor, labels: Tensor, seen: Tensor | None = None) -> Tensor:
        """Pictures `[B, 3, H, W]` in [-1, 1] with the background in the avatars' colour that it is most like.

        Where it cannot be told from the drawing, a picture stays as it is. It is looked for in `seen`, if given: the
        same pictures without grain.
        """
        clear = pictures if seen is None else seen
        where = background(clear)
        where &= (where.float().mean((1, 2)) <= self.largest[labels]).view(-1, 1, 1)
        middle = clear.masked_fill(~where[:, None], torch.nan).flatten(2).nanmedian(2).values.nan_to_num()
        if len(self.colours):
            middle = self.colours[(middle[:, None] - self.colours).abs().sum(2).argmin(1)]
        return torch.where(where[:, None], middle[:, :, None, None], pictures)


def background(pictures: Tensor) -> Tensor:
    """Of pictures `[B, 3, H, W]`, what is joined smoothly to the upper half of the border: bool `[B, H, W]`."""
    height, width = pictures.shape[2:]
    border = torch.zeros(height, width, dtype=torch.bool, device=pictures.device)
    border[0] = border[: height // 2, 0] = border[: height // 2, -1] = True
    left, right = (pictures[:, :, 1 : height // 2, column] for column in (0, -1))
    middle = torch.cat([pictures[:, :, 0], left, right], 2).median(2).values[:, :, None, None]
    near = (pictures - middle).abs().amax(1) < OFF
    range_around = functional.max_pool2d(pictures, 3, 1, 1) + functional.max_pool2d(-pictures, 3, 1, 1)
    smooth = near & (range_around.amax(1) < 2 * STEP)
    found = border & smooth
    for _ in range(0, height + width, AT_ONCE):  # farther than backgrounds wind
        grown = found
        for _ in range(AT_ONCE):
            grown = _grown(grown) & smooth
        if not grown.is_cuda and torch.equal(grown, found):  # a GPU would wait for it
            break
        found = grown
    return _grown(found) & near


def _grown(where: Tensor) -> Tensor:
    """Bool `[B, H, W]`, by one pixel in every direction."""
    return functional.max_pool2d(where.float()[:, None], 3, 1, 1)[:, 0] > 0

"""What a consistency model steps from: noise alone, or pictures with noise, as second and later steps have."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data import Avatars
from training.network import SIGMA_MAX
from training.recipe import CLASSES

Own = tuple[Tensor, Tensor, Tensor]  # pictures `[R, 3, H, W]`, their class labels and what noise each was made from
MUCH = 8.0  # noise through which a picture hardly shows


def draw_starts(
    data: Avatars, size: int, share_noised: float, noised_from: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`size` starts, on the generator's device: x `[B, 3, H, W]` in channels-last layout, sigma and class labels `[B]`.

    Last, the noised pictures. The first `share_noised` are pictures with noise from `noised_from` to sigma_max, alike
    in ln sigma; the rest are noise alone.
    """
    device = generator.device
    noised = max(1, int(size * share_noised))
    pictures, kept = data.batch(noised, generator)
    labels = torch.randint(len(CLASSES), (size,), generator=generator, device=device)
    labels[:noised] = kept
    sigma = torch.full((size,), SIGMA_MAX, device=device)
    place = torch.rand(noised, generator=generator, device=device)
    sigma[:noised] = noised_from * (SIGMA_MAX / noised_from) ** place
    x = torch.randn((size, *pictures.shape[1:]), generator=generator, device=device) * sigma.view(-1, 1, 1, 1)
    x[:noised] += pictures
    return x.contiguous(memory_format=torch.channels_last), sigma, labels, pictures


def put_own(
    starts: tuple[Tensor, Tensor, Tensor],
    own: Tensor,
    own_labels: Tensor,
    noise: tuple[float, Tensor | float],
    source: torch.Generator,
) -> None:
    """Own pictures `[R, 3, H, W]` with noise, and their labels `[R]`, instead of the first R starts, in place.

    `noise` is the least and the most, which may be one for each; between them it is alike in ln sigma.
    """
    x, sigma, labels = starts
    rows = len(own)
    place = torch.rand(rows, generator=source, device=x.device)
    drawn = torch.randn(own.shape, generator=source, device=x.device)
    least, most = noise
    sigma[:rows] = least * (most / least) ** place
    labels[:rows] = own_labels
    x[:rows] = own + sigma[:rows].view(-1, 1, 1, 1) * drawn


def kept_of(made: Tensor, sigma: Tensor, labels: Tensor, share: float, source: torch.Generator) -> Own:
    """The share of pictures `[B, 3, H, W]` to begin at next, with labels and noise.

    First one-step samples, then what was made from so much noise that it is not much like the step before, then any
    others.
    """
    chance = torch.rand(len(made), generator=source, device=made.device)
    order = chance + (sigma > MUCH) + (sigma == SIGMA_MAX)
    kept = order.topk(max(1, int(len(made) * share))).indices
    return made[kept].clamp(-1, 1), labels[kept], sigma[kept]


def rows_of(wanted: Tensor) -> Tensor:
    """Places where bool `[B]` holds, or all of them on a GPU: that takes seconds to prepare for a new size."""
    return torch.arange(len(wanted), device=wanted.device) if wanted.is_cuda else wanted.nonzero()[:, 0]

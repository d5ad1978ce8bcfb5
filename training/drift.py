"""Variety: pulls pictures towards avatars that they are like, and away from other pictures of the model's own.

A critic only says whether a picture could be an avatar, so a model may make few kinds of them. The drift of Deng et al.
2026 ("Generative Modeling via Drifting", arXiv 2602.04770) compares many pictures of a class with many avatars of it:
where its own are denser than avatars, they push each other away. It needs batches larger than two CPU cores have, so
it keeps what was made of late.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data import Avatars, to_signed
from training.feature_maps import FeatureMaps
from training.picture_critic import enlarged
from training.recipe import CLASSES
from training.starts import rows_of

TEMPERATURES = (0.05, 0.1, 0.2)  # of a kernel exp(-distance / temperature); 1 is the mean distance of two avatars
AVATARS = 1000  # of each class, the last ones: evaluation compares with the first
DRAWN = 256  # of those, for each step
KEPT = 64  # own pictures of a class
CHUNK = 50  # pictures looked at together


class Views(nn.Module):
    """Pictures `[B, 3, S, S]` in [-1, 1] to several vectors of each, `[B, D]`: maps pooled coarsely, and colours."""

    pooled: ClassVar[list[tuple[int, int]]] = [(0, 4), (1, 4), (2, 2), (2, 1), (3, 1), (4, 8)]  # what, to which side

    def __init__(self, times: int, autocast: bool) -> None:
        """They are looked at `times` as large."""
        super().__init__()
        self.maps = FeatureMaps(times, autocast)
        channels = [*FeatureMaps.channels, 3]
        self.widths = [channels[what] * side**2 for what, side in self.pooled]

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Finest first: where things are; then what there is; last, colours."""
        images = [*self.maps(pictures), pictures]
        return [functional.adaptive_avg_pool2d(images[what], side).flatten(1) for what, side in self.pooled]


class Drift:
    """Of pictures that are made in `groups` ways, each compared with its own kind only."""

    def __init__(
        self,
        data: Avatars,
        groups: int,
        generator: torch.Generator,
        device: str,
        bf16: bool,
        times: int | None = None,
    ) -> None:
        """`groups` is how many ways there are; pictures are looked at `times` as large, or as `enlarged` says.

        A kind is a group and a class; one more takes what does not drift.
        """
        self.data, self.generator, self.device = data, generator, device
        self.views = Views(times or enlarged(data.image_size), bf16).to(device)
        self.kinds = groups * len(CLASSES)
        self.kept = [torch.zeros(self.kinds + 1, KEPT, width, device=device) for width in self.views.widths]
        self.counts = torch.zeros(self.kinds + 1, dtype=torch.int64, device=device)

    @cached_property
    def looked(self) -> tuple[list[Tensor], list[Tensor]]:
        """Views of the avatars, class by class, scaled, and the factors. Minutes of a CPU, so only when wanted."""
        avatars = [self._look(torch.from_numpy(images[-AVATARS:])) for images in self.data.images]
        scales = [scale(list(of_classes)) for of_classes in zip(*avatars, strict=True)]
        joined = [torch.cat(of_classes) for of_classes in zip(*avatars, strict=True)]
        return [view * factors for view, factors in zip(joined, scales, strict=True)], scales

    @torch.no_grad()
    def _look(self, pictures: Tensor) -> list[Tensor]:
        chunks = [self.views(to_signed(chunk.to(self.device))) for chunk in pictures.split(CHUNK)]
        return [torch.cat(parts) for parts in zip(*chunks, strict=True)]

    def pull(self, made: Tensor, labels: Tensor, group: Tensor) -> Tensor:
        """Minus is where pictures `[B, 3, S, S]` drift, for each of their values.

        `group` `[B]` is how they were made; those of -1 are left out and get zeros, as do all until the places for
        pictures of their kind are taken.
        """
        rows = rows_of(group >= 0)
        pull = torch.zeros_like(made)
        if not len(rows):
            return pull
        seen = made.detach()[rows].requires_grad_()
        views = self.views(seen)
        kind = (group * len(CLASSES) + labels).masked_fill(group < 0, self.kinds)[rows]
        fields = self._fields([view.detach() for view in views], kind)
        towards = torch.stack([(view * field).sum() for view, field in zip(views, fields, strict=True)]).sum()
        (pull[rows],) = torch.autograd.grad(-towards, seen)
        return pull

    def _fields(self, views: list[Tensor], kind: Tensor) -> list[Tensor]:
        """Where rows of these kinds `[B]` drift in each view, `[B, D]`; from now on they are kept."""
        same = kind == kind[:, None]
        place = (self.counts[kind] + same.tril(-1).sum(1)) % KEPT
        for kept, view in zip(self.kept, views, strict=True):
            kept[kind, place] = view
        self.counts.index_add_(0, kind, torch.ones_like(kind))
        full = self.counts >= KEPT
        full[-1].fill_(False)
        present = torch.zeros_like(full).index_fill(0, kind, True)
        taken, drawn = rows_of(present & full), self._drawn()
        if not len(taken):
            return [torch.zeros_like(view) for view in views]
        among = torch.searchsorted(taken, kind).clamp(max=len(taken) - 1)
        known = full[kind, None]
        avatars, scales = self.looked
        fields = []
        for kept, of_avatars, factors in zip(self.kept, avatars, scales, strict=True):
            field = drift_of(kept[taken] * factors, of_avatars[drawn[taken % len(CLASSES)]])[among, place] * factors
            fields.append(field.masked_fill(~known, 0))
        return fields

    def _drawn(self) -> Tensor:
        """Places of random avatars of each class among those looked at, `[C, DRAWN]`."""
        counts = self.data.on(self.generator.device)[2].clamp(max=AVATARS)
        first = counts.cumsum(0) - counts
        shape = (len(CLASSES), DRAWN)
        place = torch.rand(shape, generator=self.generator, device=counts.device, dtype=torch.float64)
        return first[:, None] + (place * counts[:, None]).long()

    def state(self) -> dict[str, Any]:
        """To be a part of a phase's."""
        return {"drift": self.kept, "drift_counts": self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`; what else is in there is left alone."""
        self.kept, self.counts = state["drift"], state["drift_counts"]


def scale(views: list[Tensor]) -> Tensor:
    """For vectors `[N, D]` of each class, factors `[D]` that make them alike, and their mean distance in a class 1."""
    spread = torch.stack([view.var(0) for view in views]).mean(0).sqrt().clamp(min=1e-3)
    apart = torch.stack([torch.pdist(view[:KEPT] / spread).mean() for view in views]).mean()
    return 1 / (spread * apart)


@torch.no_grad()
def drift_of(made: Tensor, real: Tensor) -> Tensor:
    """Where points `[K, N, D]` should move to become distributed as `[K, M, D]`: sums over temperatures, of RMS 1 each.

    Weights are normalised over both sides, so that every real point attracts somebody (section 3 of the paper).
    """
    off_made, off_real = torch.cdist(made, made), torch.cdist(made, real)
    off_made.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    total = torch.zeros_like(made)
    for temperature in TEMPERATURES:
        logits = torch.cat([off_real, off_made], 2) / -temperature
        weights = (logits.softmax(2) * logits.softmax(1)).sqrt()
        attracted, repelled = weights.split([real.shape[1], made.shape[1]], 2)
        drift = attracted * repelled.sum(2, keepdim=True) @ real - repelled * attracted.sum(2, keepdim=True) @ made
        total += drift / drift.square().sum(2).mean(1).sqrt().clamp(min=1e-9).view(-1, 1, 1)
    return total

"""Rendered avatars on disk: uint8 shards with a class and attributes for every picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.recipe import CLASSES


@dataclass(frozen=True)
class Attribute:
    """One named column of a class: `codes[i]` indexes `values`."""

    values: list[str]
    codes: np.ndarray


class Avatars:
    """One split of one size. `images[c]` is uint8 `[N, H, W, 3]` of class c, a part of `pool`, which has all."""

    def __init__(self, folder: Path, split: str) -> None:
        self.shards: list[list[Path]] = []
        for name in CLASSES:
            shards = sorted(folder.glob(f"{split}-{name}-[0-9]*.npy"))
            if not shards:
                raise FileNotFoundError(f"no {split} avatars of {name} in {folder}; run render.mjs first")
            self.shards.append(shards)
        loaded = [[np.load(path) for path in shards] for shards in self.shards]
        self.pool = np.concatenate([shard for shards in loaded for shard in shards])
        self.images = np.split(self.pool, np.cumsum([sum(map(len, shards)) for shards in loaded])[:-1])
        self._there: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.images))

    @property
    def image_size(self) -> int:
        """Pixels on a side."""
        return int(self.images[0].shape[1])

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The pool there, uint8 `[N, H, W, 3]`, where each class begins in it, and how many there are of it, `[C]`.

        They stay there: a GPU would wait for every batch that comes from elsewhere.
        """
        if device not in self._there:
            counts = torch.tensor([len(images) for images in self.images])
            parts = torch.from_numpy(self.pool), counts.cumsum(0) - counts, counts
            pool, first, counts = (part.to(device) for part in parts)
            self._there[device] = pool, first, counts
        return self._there[device]

    def of_class(self, label: int, device: torch.device) -> Tensor:
        """A class's part of the pool there."""
        return self.on(device)[0].split([len(images) for images in self.images])[label]

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random pictures float32 `[B, 3, H, W]` in [-1, 1], class labels int64 `[B]`: on the generator's device."""
        device = generator.device
        pool, first, counts = self.on(device)
        labels = torch.randint(len(CLASSES), (size,), generator=generator, device=device)
        places = torch.rand(size, generator=generator, dtype=torch.float64, device=device)
        return to_signed(pool[first[labels] + (places * counts[labels]).long()]), labels

    def take(self, per_class: int) -> tuple[np.ndarray, np.ndarray]:
        """The first pictures of every class: uint8 `[N, H, W, 3]` and int64 labels `[N]`, class by class."""
        short = [n for n, images in zip(CLASSES, self.images, strict=True) if len(images) < per_class]
        if short:
            raise ValueError(f"fewer than {per_class} avatars of {', '.join(short)}")
        labels = np.repeat(np.arange(len(CLASSES)), per_class)
        return np.concatenate([images[:per_class] for images in self.images]), labels

    def attributes(self, label: int) -> dict[str, Attribute]:
        """Columns of a class, shards joined; codes mean the same value in all of them."""
        columns: dict[str, list[str]] = {}
        for path in self.shards[label]:
            stored = json.loads(path.with_suffix(".json").read_text())
            for name, column in stored.items():
                columns.setdefault(name, []).extend(column["values"][code] for code in column["codes"])
        total = len(self.images[label])
        complete = {name: words for name, words in columns.items() if len(words) == total}
        result = {}
        for name, words in complete.items():
            values, codes = np.unique(words, return_inverse=True)
            result[name] = Attribute(values.tolist(), codes)
        return result


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 `[B, H, W, C]` to float32 `[B, C, H, W]` in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1

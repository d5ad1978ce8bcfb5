"""Sheets of pictures: a row for each class, groups of columns side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def sheet(groups: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Joins groups of uint8 `[rows, columns, H, W, 3]` side by side with a white gap."""
    parts: list[np.ndarray] = []
    for group in groups:
        rows, columns, height, width, _ = group.shape
        joined = group.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
        if parts:
            parts.append(np.full((rows * height, gap, 3), 255, np.uint8))
        parts.append(joined)
    return np.concatenate(parts, axis=1)


def save_sheet(path: Path, groups: Sequence[np.ndarray], zoom: int = 2) -> None:
    """Writes a sheet as PNG, every pixel `zoom` times enlarged without smoothing."""
    image = Image.fromarray(sheet(groups))
    path.parent.mkdir(parents=True, exist_ok=True)
    enlarged = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    enlarged.save(path, optimize=True)

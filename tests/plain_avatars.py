"""Plain colours, stored as the renderer stores avatars."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from training.data import Avatars
from training.recipe import CLASSES


def plain_avatars(folder: Path) -> Avatars:
    """Twelve colours for each class, 16x16, with one attribute."""
    random = np.random.default_rng(0)
    for name in CLASSES:
        colours = random.integers(0, 256, (12, 1, 1, 3), dtype=np.uint8)
        np.save(folder / f"train-{name}-0000000.npy", colours.repeat(16, axis=1).repeat(16, axis=2))
        column = {"values": ["none", "red", "blue"], "codes": [1, 2] * 6}
        (folder / f"train-{name}-0000000.json").write_text(json.dumps({"hair": column}))
    return Avatars(folder, "train")

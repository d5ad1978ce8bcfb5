"""Which images of `onestep generate --out` are there already: a run goes on where it was, and only its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from PIL import Image

from service.npz import OtherRun


class Expected(msgspec.Struct, frozen=True):
    """What the PNGs of a run say about themselves, whatever the image."""

    model: str  # served name
    revision: str
    timesteps: Sequence[int]  # descending


def file_name(seed: int, class_label: int | None) -> str:
    """The name of an image's PNG."""
    suffix = "" if class_label is None else f"-class{class_label}"
    return f"seed{seed}{suffix}.png"


def is_made(path: Path, expected: Expected) -> bool:
    """Whether an image is there. Raises `OtherRun` when it is none of this run's."""
    if not path.exists():
        return False
    try:
        with Image.open(path) as image:
            text = dict(image.info)
    except OSError:  # Pillow's error for what is no image is one too
        text = {}
    found = (text.get("model"), text.get("revision"), text.get("timesteps"))
    if found != (expected.model, expected.revision, ",".join(map(str, expected.timesteps))):
        raise OtherRun(f"{path} is no image of this model and these steps; remove it or choose another folder")
    return True

"""What a training phase keeps on disk, so that it goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_weights(path: Path, weights: dict[str, Tensor], recipe: dict[str, Any]) -> None:
    """Writes float32 safetensors with the recipe in its header; the file is whole or absent."""
    partial = path.with_suffix(".partial")
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(plain, partial, metadata={"recipe": json.dumps(recipe)})
    os.replace(partial, path)


def load_weights(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Tensors of a safetensors file by name."""
    return load_file(path, device=device)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes weights, average, optimizer and generators of a run; whole or absent."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path, device: str) -> dict[str, Any]:
    """Reads what `save_state` wrote: tensors and plain values only."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state

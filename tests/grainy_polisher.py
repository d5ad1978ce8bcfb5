"""A phase that keeps the weights it began with, ready to train, with a network that makes grain."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch

from tests.plain_avatars import plain_avatars
from training.network import build_unet
from training.polisher import Polisher
from training.recipe import PRESETS

Kind = TypeVar("Kind", bound=Polisher)


def grainy_polisher(kind: type[Kind], folder: Path) -> Kind:
    """Of the smallest preset on plain colours."""
    torch.manual_seed(0)
    recipe = PRESETS["smoke"].with_phase(kind.kept_for, images=10_000, batch=16, learning_rate=2e-3, warmup=1)
    result = kind(recipe, plain_avatars(folder), folder, "cpu", bf16=False, compiled=False)
    grainy = build_unet(recipe.network)
    torch.nn.init.normal_(grainy.conv_out.weight, std=0.02)
    result.start_from(grainy.state_dict())
    return result

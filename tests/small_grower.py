"""A phase that grows a model, ready to train: networks of a few weights, an enlarger that has learnt nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tests.plain_avatars import plain_avatars
from training.enlarger import Enlarger
from training.grower import Grower
from training.network import build_unet
from training.recipe import PRESETS, NetworkSettings, PhaseSettings, Recipe
from training.state import save_weights

LARGER = NetworkSettings(
    16, (32, 32, 32, 64), attention_at=(4,), layers_per_block=1, norm_num_groups=8, attention_head_dim=16
)
QUICK = PhaseSettings(1_600, 16, 2e-3, 5, 0.9, ahead=1)
RECIPE: Recipe = replace(PRESETS["64-grown"], network=LARGER, grow=QUICK, sharpen=QUICK)

Kind = TypeVar("Kind", bound=Grower)


def smaller_weights() -> dict[str, Tensor]:
    """Of the network that `LARGER` grows from."""
    torch.manual_seed(3)
    smaller = build_unet(LARGER.halved())
    torch.nn.init.normal_(smaller.conv_out.weight, std=0.1)
    return dict(smaller.state_dict())


def small_grower(kind: type[Kind], folder: Path) -> Kind:
    """Of plain colours; it has not begun."""
    torch.manual_seed(0)
    save_weights(folder / "enlarger.safetensors", dict(Enlarger().state_dict()), {})
    return kind(RECIPE, plain_avatars(folder), folder, "cpu", False, False)

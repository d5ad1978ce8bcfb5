"""The two models of the comparison, as diffusers folders that both sides can read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from service.models.convert import LAYOUTS
from service.models.places import load_infos
from tests.tiny import save_pipeline

IMAGENET = "imagenet-64"


def folder_of(name: str, work: Path) -> tuple[Path, int | None]:
    """The folder of a bundled model, of `imagenet-64` (made under `work` when it is not there), or `name` itself, and
    the number of its classes."""
    if name == IMAGENET:
        folder = work / IMAGENET
        if not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists():
            _imagenet(folder)
        name = str(folder)
    info = next(iter(load_infos(name).values()))
    return Path(info.path), info.num_classes


def _imagenet(folder: Path) -> None:
    """ImageNet-64's layout, 296 M parameters, random weights: pictures of noise, but the work of the real model."""
    config = msgspec.structs.replace(LAYOUTS["imagenet64"], num_class_embeds=1000)
    with torch.device("meta"):
        unet = UNet2DModel(**msgspec.structs.asdict(config)).half()
    unet.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for weight in unet.parameters():
        weight.data.normal_(generator=generator).mul_(1 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    save_pipeline(folder, unet)

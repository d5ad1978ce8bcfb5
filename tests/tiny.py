"""Small real models in diffusers' own folder format, for tests: random weights, equal for equal arguments.

`imagenet_like` and `lsun_like` are the two layouts of the paper with few channels; `plain` is the layout of
the bundled model. Weights are drawn so that pictures vary with the noise, the class and the noise level, and
few of their pixels are clipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import save_file

Layout = Literal["imagenet_like", "lsun_like", "plain"]

LAYOUTS: dict[Layout, dict[str, Any]] = {
    "imagenet_like": {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "num_class_embeds": 10,
    },
    "lsun_like": {
        "block_out_channels": [16, 16, 32],
        "layers_per_block": 1,
        "down_block_types": ["ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "default",
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "num_class_embeds": None,
    },
    "plain": {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "num_class_embeds": 10,
    },
}


def tiny_unet(
    layout: Layout = "imagenet_like", *, sample_size: int = 8, seed: int = 0, **overrides: Any
) -> UNet2DModel:
    """A small UNet in eval mode, every weight drawn from `seed`; `overrides` are UNet2DModel options."""
    options: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "sample_size": sample_size}
    unet = UNet2DModel(**(options | LAYOUTS[layout] | overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1 and name != "class_embedding.weight":
                weight.copy_(noise / weight[0].numel() ** 0.5)
            elif name == "class_embedding.weight":
                weight.copy_(noise)
            elif "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.1 * noise)
            else:
                weight.copy_(0.1 * noise)
    return unet.eval().requires_grad_(False)


def write_json(path: Path, value: object) -> None:
    """Writes `value` as JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_pipeline(folder: Path, unet: UNet2DModel, *, labels: dict[str, str] | None = None, **scheduler: Any) -> Path:
    """Writes `unet` as a ConsistencyModelPipeline folder; `scheduler` are options of diffusers' scheduler."""
    index = {
        "_class_name": "ConsistencyModelPipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "CMStochasticIterativeScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_json(folder / "model_index.json", index)
    schedule = {"num_train_timesteps": 40, "sigma_min": 0.002, "sigma_max": 80.0} | scheduler
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "CMStochasticIterativeScheduler", "_diffusers_version": "0.36.0"} | schedule,
    )
    options = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    write_json(
        folder / "unet" / "config.json",
        {"_class_name": "UNet2DModel", "_diffusers_version": "0.36.0"} | options,
    )
    weights = {name: weight.detach().contiguous() for name, weight in unet.state_dict().items()}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    if labels is not None:
        write_json(folder / "labels.json", labels)
    return folder


def tiny_model(
    folder: Path,
    layout: Layout = "imagenet_like",
    *,
    num_train_timesteps: int = 40,
    sample_size: int = 8,
    seed: int = 0,
    labels: dict[str, str] | None = None,
    scheduler: dict[str, Any] | None = None,
    **unet_options: Any,
) -> Path:
    """Makes a small model folder in milliseconds and returns it; `unet_options` are UNet2DModel options."""
    unet = tiny_unet(layout, sample_size=sample_size, seed=seed, **unet_options)
    options = {"num_train_timesteps": num_train_timesteps} | (scheduler or {})
    return save_pipeline(folder, unet, labels=labels, **options)

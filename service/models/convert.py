"""Turns an original checkpoint of openai/consistency_models (`.pt`) into a diffusers folder.

The `.pt` is the state of that repository's `UNetModel`: one numbered list of blocks down, a middle, one
numbered list up, each a residual block, perhaps an attention block, perhaps a resampling residual block.
diffusers has the same layers under names per resolution. This is the only place that opens a pickle, with
`weights_only`, which runs no code from it.
"""

from __future__ import annotations

import json
import pickle
import struct
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import save_file

from service.diffusion.schedule import NoiseSchedule
from service.errors import FatalModelError
from service.models.catalog import CATALOG, imagenet_classes
from service.models.configs import UNetConfig
from service.models.folder import LABELS, MODEL_INDEX, SCHEDULER_CONFIG, UNET_CONFIG, load_info
from service.models.info import ModelInfo
from service.models.loader import load_unet
from service.models.weights import WEIGHTS

State = dict[str, torch.Tensor]
LayoutName = Literal["imagenet64", "lsun256", "test"]

_RESAMPLED_BY_RESNETS: dict[str, Any] = {"downsample_type": "resnet", "upsample_type": "resnet"}

# What a state does not say: image size, width of an attention head, where attention is.
LAYOUTS: dict[LayoutName, UNetConfig] = {
    "imagenet64": UNetConfig(
        sample_size=64,
        layers_per_block=3,
        block_out_channels=(192, 384, 576, 768),
        attention_head_dim=64,
        down_block_types=("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,
        **_RESAMPLED_BY_RESNETS,
    ),
    "lsun256": UNetConfig(
        sample_size=256,
        layers_per_block=2,
        block_out_channels=(256, 256, 512, 512, 1024, 1024),
        attention_head_dim=64,
        down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        resnet_time_scale_shift="default",
        **_RESAMPLED_BY_RESNETS,
    ),
    "test": UNetConfig(
        sample_size=32,
        layers_per_block=2,
        block_out_channels=(32, 64),
        attention_head_dim=8,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,
        **_RESAMPLED_BY_RESNETS,
    ),
}
_LAYOUT_OF_WIDTH: dict[int, LayoutName] = {192: "imagenet64", 256: "lsun256", 32: "test"}

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",  # only where the number of channels changes
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def convert_checkpoint(
    checkpoint: Path,
    folder: Path,
    *,
    layout: LayoutName | None = None,
    num_train_timesteps: int | None = None,
) -> ModelInfo:
    """Writes the model in `checkpoint` as a diffusers folder, loads that once as proof, and describes it.

    `layout` is known from the state's width, `num_train_timesteps` from the names of the published files,
    unless given. Raises FatalModelError with the reason, OSError where it cannot
    write; then nothing is left behind.
    """
    if folder.exists():
        raise FatalModelError(f"{folder}: exists already.")
    if not checkpoint.exists():
        raise FatalModelError(f"{checkpoint}: is missing.")
    scales = num_train_timesteps or published_scales(checkpoint.stem)
    if scales is None:
        raise FatalModelError(
            f"{checkpoint}: its name is none of the published ones, so the number of training timesteps "
            "must be given (distillation: 40; training: 201 for ImageNet-64, 151 for LSUN-256)."
        )
    state = read_checkpoint(checkpoint)
    config = unet_config(checkpoint, state, layout)
    weights = convert_state(checkpoint, state, config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / folder.name
        _write_folder(made, config, NoiseSchedule(num_train_timesteps=scales), weights)
        load_unet(load_info(made, folder.name))
        made.rename(folder)
    return load_info(folder, folder.name)


def published_scales(stem: str) -> int | None:
    """Training timesteps of a published checkpoint by its file's name (`cd_imagenet64_l2`), else None."""
    entry = CATALOG.get(stem.replace("_", "-"))
    return entry.num_train_timesteps if entry else None


# What reading raises whose bytes are no checkpoint's, or have changed
DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, ImportError, LookupError, OSError),
    *(pickle.PickleError, RuntimeError, TypeError, ValueError, struct.error),
)


def read_checkpoint(path: Path) -> State:
    """The tensors in a `.pt` file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FatalModelError(f"{path}: is missing.") from None
    except DAMAGE as error:
        reason = str(error).strip().split("\n")[0]
        raise FatalModelError(f"{path}: is not a checkpoint of plain tensors ({reason}).") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise FatalModelError(f"{path}: is not the state of a network (names and tensors).")
    return state


def unet_config(path: Path, state: State, layout: LayoutName | None = None) -> UNetConfig:
    """The network's configuration: the layout's, with as many classes as the state has."""
    first = state.get("input_blocks.0.0.weight")
    embedding = state.get("label_emb.weight")
    if first is None or first.ndim != 4 or (embedding is not None and embedding.ndim != 2):
        raise FatalModelError(f"{path}: is not a UNet of openai/consistency_models (no `input_blocks.0.0.weight`).")
    layout = layout or _LAYOUT_OF_WIDTH.get(first.shape[0])
    if layout is None:
        raise FatalModelError(f"{path}: a UNet of width {first.shape[0]} is none of {', '.join(LAYOUTS)}.")
    return msgspec.structs.replace(LAYOUTS[layout], num_class_embeds=None if embedding is None else embedding.shape[0])


def convert_state(path: Path, state: State, config: UNetConfig) -> State:
    """diffusers' names for the tensors of `state`; FatalModelError unless they are exactly the network's."""
    weights: State = {}
    rest = dict(state)
    modules = _ENDS | dict(_block_names(config))
    for new, old in modules.items():
        for name in [name for name in rest if name.startswith(old + ".")]:
            for suffix, tensor in _renamed(name.removeprefix(old + "."), rest.pop(name)):
                weights[f"{new}.{suffix}"] = tensor
    if config.num_class_embeds is not None:
        weights["class_embedding.weight"] = rest.pop("label_emb.weight")
    with torch.device("meta"):
        unet: UNet2DModel = UNet2DModel(**msgspec.structs.asdict(config))
    expected = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    wrong = {name for name in expected if name not in weights or weights[name].shape != expected[name]}
    wrong |= set(rest) | (set(weights) - set(expected))
    if wrong:
        raise FatalModelError(f"{path}: does not fit the layout ({len(wrong)} tensors, first {min(wrong)!r}).")
    return weights


def _block_names(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """diffusers' and the original's name of each residual and attention block on the way down and up."""
    levels, layers = len(config.block_out_channels), config.layers_per_block
    number = 1  # input_blocks.0 is the first convolution
    for level, kind in enumerate(config.down_block_types):
        for layer in range(layers):
            yield f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{number}.0"
            if kind == "AttnDownBlock2D":
                yield f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{number}.1"
            number += 1
        if level < levels - 1:
            yield f"down_blocks.{level}.downsamplers.0", f"input_blocks.{number}.0"
            number += 1
    number = 0
    for level, up_kind in enumerate(config.up_block_types):
        for layer in range(layers + 1):
            yield f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{number}.0"
            if up_kind == "AttnUpBlock2D":
                yield f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{number}.1"
            if level < levels - 1 and layer == layers:
                place = 2 if up_kind == "AttnUpBlock2D" else 1
                yield f"up_blocks.{level}.upsamplers.0", f"output_blocks.{number}.{place}"
            number += 1


def _renamed(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """New names inside one block. Attention's 1x1 convolutions `[C, C, 1]` become linear layers `[C, C]`."""
    part, _, kind = name.rpartition(".")
    if part == "qkv":
        for new, chunk in zip(("to_q", "to_k", "to_v"), tensor.chunk(3), strict=False):
            yield f"{new}.{kind}", chunk.flatten(1) if kind == "weight" else chunk
    elif part == "proj_out":
        yield f"to_out.0.{kind}", tensor.flatten(1) if kind == "weight" else tensor
    elif part == "norm":
        yield f"group_norm.{kind}", tensor
    else:
        resnet = {old: new for new, old in _RESNET.items()}
        yield (f"{resnet[part]}.{kind}" if part in resnet else name), tensor


def _write_folder(folder: Path, config: UNetConfig, schedule: NoiseSchedule, weights: State) -> None:
    made_by = version("diffusers")

    def write(name: Path, class_name: str, content: dict[str, Any]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"_class_name": class_name, "_diffusers_version": made_by}
        path.write_text(json.dumps(head | content, indent=2) + "\n", encoding="utf-8")

    scheduler_class, unet_class = "CMStochasticIterativeScheduler", "UNet2DModel"
    parts = {"scheduler": ["diffusers", scheduler_class], "unet": ["diffusers", unet_class]}
    write(MODEL_INDEX, "ConsistencyModelPipeline", parts)
    write(SCHEDULER_CONFIG, scheduler_class, msgspec.structs.asdict(schedule))
    write(UNET_CONFIG, unet_class, msgspec.structs.asdict(config))
    if config.num_class_embeds == len(imagenet_classes()):
        (folder / LABELS).write_text(json.dumps(dict(enumerate(imagenet_classes())), indent=2) + "\n", "utf-8")
    plain = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(plain, folder / "unet" / WEIGHTS, metadata={"format": "pt"})

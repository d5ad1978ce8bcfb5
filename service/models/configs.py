"""The JSON files of a diffusers folder, read strictly: what is not understood could change the picture.

No torch here: the HTTP process checks a model with this before it binds a port.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from service.diffusion.schedule import NoiseSchedule
from service.errors import FatalModelError

MAX_CONFIG_BYTES = 1 << 20
MAX_IMAGE_SIZE = 4096  # pixels
MAX_CLASSES = 1_000_000

DownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
Resample = Literal["conv", "resnet"]


class UNetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `diffusers.UNet2DModel` with its defaults, narrowed to what a consistency model can use."""

    sample_size: int
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[DownBlock, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    mid_block_type: Literal["UNetMidBlock2D"] | None = "UNetMidBlock2D"
    up_block_types: tuple[UpBlock, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: Resample | None = "conv"
    upsample_type: Resample | None = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    @property
    def time_embed_dim(self) -> int:
        """Width of the time and class embeddings."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def attention_channels(self) -> list[int]:
        """Channels of the images in which pixels look at each other."""
        down = zip(self.block_out_channels, self.down_block_types, strict=False)
        up = zip(reversed(self.block_out_channels), self.up_block_types, strict=False)
        found = [channels for channels, kind in (*down, *up) if kind.startswith("Attn")]
        return found + [*self.block_out_channels[-1:]] * (self.mid_block_type is not None and self.add_attention)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; anything else is a FatalModelError."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise FatalModelError(f"{path}: is not a file.")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise FatalModelError(f"{path}: is larger than {MAX_CONFIG_BYTES} bytes, no configuration is.")
        value = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise FatalModelError(f"{path}: is missing.") from None
    except OSError as error:
        raise FatalModelError(f"{path}: cannot be read ({error.strerror}).") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FatalModelError(f"{path}: is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise FatalModelError(f"{path}: must hold a JSON object.")
    return value


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Without diffusers' bookkeeping (`_class_name`, `_diffusers_version`, ...)."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _check_class(path: Path, config: dict[str, Any], expected: str) -> None:
    found = config.get("_class_name")
    if found != expected:
        raise FatalModelError(f"{path}: `_class_name` must be {expected}, and is {found!r}.")


def read_model_index(path: Path) -> dict[str, Any]:
    """`model_index.json` of a ConsistencyModelPipeline made of diffusers' own classes only."""
    index = read_json(path)
    _check_class(path, index, "ConsistencyModelPipeline")
    parts = {"unet": "UNet2DModel", "scheduler": "CMStochasticIterativeScheduler"}
    for name, class_name in parts.items():
        if index.get(name) != ["diffusers", class_name]:
            raise FatalModelError(
                f'{path}: `{name}` must be ["diffusers", "{class_name}"]; custom classes are never run.'
            )
    for name, value in _options(index).items():
        if name not in parts and name != "id2label" and value not in (None, [None, None]):
            raise FatalModelError(f"{path}: component {name!r} is not part of a ConsistencyModelPipeline.")
    return index


def read_schedule(path: Path) -> NoiseSchedule:
    """The noise schedule in `scheduler_config.json`, its values checked."""
    config = read_json(path)
    _check_class(path, config, "CMStochasticIterativeScheduler")
    options = _options(config)
    unknown = sorted(set(options) - set(NoiseSchedule.__struct_fields__))
    if unknown:
        raise FatalModelError(f"{path}: option {unknown[0]!r} is unknown and could change the picture.")
    try:
        schedule = msgspec.convert(options, NoiseSchedule)
    except msgspec.ValidationError as error:
        raise FatalModelError(f"{path}: {error}.") from None
    # JSON knows no NaN or Infinity (msgspec refuses 1e400 too), so every number here is finite.
    rules = {
        "`num_train_timesteps` must be 2 to 100,000": 2 <= schedule.num_train_timesteps <= 100_000,
        "needs 0 < `sigma_min` < `sigma_max`": 0 < schedule.sigma_min < schedule.sigma_max,
        "`sigma_data` must be positive": schedule.sigma_data > 0,
        "`rho` must be positive": schedule.rho > 0,
        "`s_noise` must not be negative": schedule.s_noise >= 0,
    }
    for rule, holds in rules.items():
        if not holds:
            raise FatalModelError(f"{path}: {rule}.")
    return schedule


def read_unet_config(path: Path) -> UNetConfig:
    """The network's configuration in `unet/config.json`, checked for what the service can run."""
    config = read_json(path)
    _check_class(path, config, "UNet2DModel")
    try:
        unet = msgspec.convert(_options(config), UNetConfig)
    except msgspec.ValidationError as error:
        raise FatalModelError(f"{path}: {error}.") from None
    levels = len(unet.block_out_channels)
    groups = unet.norm_num_groups or 1
    rules = {
        "`in_channels` and `out_channels` must be equal, as the network's output is an image like its input "
        "(one that also predicts a variance is a diffusion model, not a consistency model)": (
            unet.in_channels == unet.out_channels
        ),
        "`in_channels` must be 1 (grey) or 3 (RGB), as answers are images": unet.in_channels in (1, 3),
        "`time_embedding_type` must be 'positional', as consistency models embed 250 ln(sigma)": (
            unet.time_embedding_type == "positional"
        ),
        "`class_embed_type` must be null, as classes are indices": unet.class_embed_type is None,
        "`center_input_sample` must be false, as consistency models take the scaled noisy image as it is": (
            not unet.center_input_sample
        ),
        f"`num_class_embeds` must be null or 1 to {MAX_CLASSES}": (
            unet.num_class_embeds is None or 1 <= unet.num_class_embeds <= MAX_CLASSES
        ),
        "`block_out_channels`, `down_block_types` and `up_block_types` must be equally long, and not empty": (
            0 < levels == len(unet.down_block_types) == len(unet.up_block_types)
        ),
        "`layers_per_block`, `norm_num_groups` and `attention_head_dim` must be positive": (
            min(unet.layers_per_block, groups, unet.attention_head_dim or 1, unet.attn_norm_num_groups or 1) > 0
        ),
        "`attention_head_dim` must be at most the channels of every block with attention": (
            (unet.attention_head_dim or 1) <= min(unet.attention_channels, default=unet.attention_head_dim or 1)
        ),
        "`downsample_padding` must be 0 or 1": unet.downsample_padding in (0, 1),
        "`mid_block_scale_factor` must be positive": unet.mid_block_scale_factor > 0,
        "`norm_eps` must not be negative": unet.norm_eps >= 0,
        "`freq_shift` must be less than half of the first of `block_out_channels`": (
            unet.freq_shift < unet.block_out_channels[0] // 2 if unet.block_out_channels else True
        ),
        f"`block_out_channels` must be positive multiples of `norm_num_groups` ({groups})": all(
            channels > 0 and channels % groups == 0 for channels in unet.block_out_channels
        ),
        f"`sample_size` must be 1 to {MAX_IMAGE_SIZE} and a multiple of {2 ** min(levels - 1, 32)}": (
            0 < unet.sample_size <= MAX_IMAGE_SIZE and unet.sample_size % 2 ** min(levels - 1, 32) == 0
        ),
    }
    for rule, holds in rules.items():
        if not holds:
            raise FatalModelError(f"{path}: {rule}.")
    return unet

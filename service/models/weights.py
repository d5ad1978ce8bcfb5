"""Which files hold a model's weights, and whether they are whole: judged by their headers, without torch.

Only safetensors is read: `.bin`, `.pt`, `.ckpt` and `.pkl` files are pickles, which can run code when opened.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import msgspec

from service.errors import FatalModelError
from service.models.configs import UNetConfig, read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = WEIGHTS + ".index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

_Size = Annotated[int, msgspec.Meta(ge=0)]


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor of a safetensors header; offsets are bytes after the header."""

    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


def weight_files(unet_folder: Path) -> list[Path]:
    """The safetensors files of `unet_folder`: one file, or the shards that its index names."""
    single = unet_folder / WEIGHTS
    if single.is_file():
        return [single]
    index = unet_folder / WEIGHTS_INDEX
    if index.is_file():
        return _shards(index)
    pickles = sorted(path.name for path in unet_folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise FatalModelError(
            f"{unet_folder / pickles[0]}: is a pickle, which could run code when opened; "
            f"only safetensors weights ({WEIGHTS}) are loaded."
        )
    raise FatalModelError(f"{single}: is missing.")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FatalModelError(f"{index}: `weight_map` must be an object that names a file for each tensor.")
    names = set()
    for name in weight_map.values():
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise FatalModelError(f"{index}: `weight_map` may only name safetensors files beside it.")
        names.add(name)
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise FatalModelError(f"{index.parent / missing[0]}: is missing, though {index.name} names it.")
    return [index.parent / name for name in sorted(names)]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors that a safetensors file declares; a file that is not whole is a FatalModelError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise FatalModelError(f"{path}: is truncated or not a safetensors file (its header is cut off).")
            header: Any = msgspec.json.decode(file.read(length))
    except OSError as error:
        raise FatalModelError(f"{path}: cannot be read ({error.strerror}).") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise FatalModelError(f"{path}: is damaged (its safetensors header is not JSON).") from None
    if not isinstance(header, dict):
        raise FatalModelError(f"{path}: is damaged (its safetensors header is not an object).")
    header.pop("__metadata__", None)
    try:
        tensors = msgspec.convert(header, dict[str, TensorEntry])
    except msgspec.ValidationError as error:
        raise FatalModelError(f"{path}: is damaged (safetensors header: {error}).") from None
    _check_layout(path, tensors, data_bytes=size - 8 - length)
    return tensors


def _check_layout(path: Path, tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    """Every tensor's bytes lie in the file, in a float type, next to each other without gap or overlap."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        item_bytes = DTYPE_BYTES.get(tensor.dtype)
        if item_bytes is None:
            raise FatalModelError(f"{path}: tensor {name!r} is {tensor.dtype}, not a floating point type.")
        start, stop = tensor.data_offsets
        if start != end or stop - start != math.prod(tensor.shape) * item_bytes:
            raise FatalModelError(f"{path}: is damaged (the place of tensor {name!r} does not fit its shape).")
        end = stop
    if end != data_bytes:
        state = "truncated" if end > data_bytes else "damaged"
        raise FatalModelError(f"{path}: is {state} ({data_bytes} bytes of tensors where {end} are declared).")


def check_weights(files: list[Path], config: UNetConfig) -> None:
    """Checks every header, and that the tensors at the network's two ends have the configured shapes.

    The loader checks the rest of the names and shapes, and that every number is finite.
    """
    tensors: dict[str, tuple[Path, TensorEntry]] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise FatalModelError(f"{path}: tensor {name!r} is also in {tensors[name][0].name}.")
            tensors[name] = (path, tensor)
    first = config.block_out_channels[0]
    expected: dict[str, tuple[int, ...]] = {
        "conv_in.weight": (first, config.in_channels, 3, 3),
        "conv_out.weight": (config.out_channels, first, 3, 3),
    }
    if config.num_class_embeds is not None:
        expected["class_embedding.weight"] = (config.num_class_embeds, config.time_embed_dim)
    for name, shape in expected.items():
        if name not in tensors:
            raise FatalModelError(f"{files[0]}: tensor {name!r} is missing.")
        path, tensor = tensors[name]
        if tensor.shape != shape:
            raise FatalModelError(
                f"{path}: tensor {name!r} is {list(tensor.shape)} where config.json asks for {list(shape)}."
            )

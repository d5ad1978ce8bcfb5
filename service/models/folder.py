"""Checks a diffusers folder without torch and says what is in it.

    model_index.json                                  ConsistencyModelPipeline of diffusers' own classes
    scheduler/scheduler_config.json                   noise schedule
    unet/config.json                                  network
    unet/diffusion_pytorch_model.safetensors          weights, or shards and their index
    labels.json                                       class names (optional)
    README.md                                         its `license:` is shown (optional)

Any other file is left alone: code in a model's folder is never run and a pickle never opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from service.errors import FatalModelError
from service.models.classes import class_names, make_classes
from service.models.configs import MAX_CONFIG_BYTES, read_model_index, read_schedule, read_unet_config
from service.models.info import ModelInfo
from service.models.revision import folder_revision
from service.models.weights import check_weights, weight_files

MODEL_INDEX = Path("model_index.json")
SCHEDULER_CONFIG = Path("scheduler/scheduler_config.json")
UNET_CONFIG = Path("unet/config.json")
LABELS = Path("labels.json")
README = Path("README.md")


def load_info(
    folder: Path, name: str, *, default_names: Sequence[str] = (), default_license: str | None = None
) -> ModelInfo:
    """Reads and checks the model in `folder`, to be served as `name`.

    The defaults hold where the folder itself says nothing. Raises FatalModelError, naming the file and the
    reason, for everything that can be seen without loading the network.
    """
    if not folder.is_dir():
        raise FatalModelError(f"{folder}: is not a folder.")
    folder = folder.absolute()
    index = read_model_index(folder / MODEL_INDEX)
    schedule = read_schedule(folder / SCHEDULER_CONFIG)
    unet = read_unet_config(folder / UNET_CONFIG)
    files = weight_files(folder / "unet")
    check_weights(files, unet)
    names: list[str] = []
    if unet.num_class_embeds is not None:
        names = _names(folder, index, unet.num_class_embeds, default_names)
    return ModelInfo(
        name=name,
        path=folder,
        revision=folder_revision(folder, decisive_files(folder)),
        image_size=unet.sample_size,
        channels=unet.in_channels,
        num_classes=unet.num_class_embeds,
        classes=make_classes(names),
        schedule=schedule,
        license=_license(folder / README) or default_license,
    )


def decisive_files(folder: Path) -> list[Path]:
    """The files whose bytes decide pixels, and so the revision."""
    return [folder / SCHEDULER_CONFIG, folder / UNET_CONFIG, *weight_files(folder / "unet")]


def _names(folder: Path, index: dict[str, Any], count: int, default: Sequence[str]) -> list[str]:
    """Names of `count` classes: `labels.json`, else `id2label` of `model_index.json`, else the default."""
    path = folder / LABELS
    if path.is_file():
        return class_names(_read_labels(path), count, path)
    if index.get("id2label") is not None:
        return class_names(index["id2label"], count, folder / MODEL_INDEX)
    return class_names(default if len(default) == count else (), count, path)


def _read_labels(path: Path) -> object:
    try:
        if path.stat().st_size > 16 * MAX_CONFIG_BYTES:
            raise FatalModelError(f"{path}: is too large for class names.")
        labels: object = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise FatalModelError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise FatalModelError(f"{path}: is not valid JSON ({error}).") from None
    return labels


def _license(readme: Path) -> str | None:
    """`license:` of a model card's head, None when there is none."""
    if not readme.is_file():
        return None
    try:
        with readme.open(encoding="utf-8") as file:
            text = file.read(64_000)
    except (OSError, UnicodeDecodeError):
        return None
    end = text.find("\n---", 3)
    head = text[3:end] if text.startswith("---") and end > 0 else ""
    found = re.search(r"^license:[ \t]*['\"]?([A-Za-z0-9.+-]+)['\"]?[ \t]*$", head, re.MULTILINE)
    return found[1] if found else None

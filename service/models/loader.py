"""Builds a model's network from its folder. The only file here that the engine needs torch for.

Only `diffusers.models.unets.unet_2d` is imported of diffusers, and no weight is drawn at random first: an
engine that comes back should be ready within seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from service.errors import FatalModelError
from service.models.configs import read_json
from service.models.folder import UNET_CONFIG, decisive_files
from service.models.info import ModelInfo
from service.models.revision import folder_revision
from service.models.weights import weight_files


class _Undrawn(TorchFunctionMode):
    """Leaves fresh weights as they are: to draw one on the meta device torch would import its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_unet(info: ModelInfo, device: torch.device | str = "cpu") -> UNet2DModel:
    """The network of `info` on `device`, in float32 whatever the file holds, in eval mode, without gradients.

    Raises FatalModelError when the folder is no longer what `info` was read from, when tensors are missing,
    unexpected or of another shape, or when a number is not finite.
    """
    if folder_revision(info.path, decisive_files(info.path)) != info.revision:
        raise FatalModelError(f"{info.path}: changed since the service started; restart it to serve the new files.")
    config = info.path / UNET_CONFIG
    options = {key: value for key, value in read_json(config).items() if not key.startswith("_")}
    try:
        with torch.device("meta"), _Undrawn():
            unet: UNet2DModel = UNet2DModel(**options)
    except (ValueError, TypeError, RuntimeError, KeyError, ZeroDivisionError) as error:
        raise FatalModelError(f"{config}: diffusers cannot build this network ({error}).") from None
    unet.load_state_dict(_checked_weights(info.path / "unet", unet), assign=True)
    torch.nn.Module.to(unet.eval().requires_grad_(False), device)  # diffusers' own `to` is untyped
    return unet


def _checked_weights(folder: Path, unet: UNet2DModel) -> dict[str, torch.Tensor]:
    """The weights in float32; exactly the tensors that `unet` has, of the same shapes, all finite."""
    expected = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    weights: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise FatalModelError(f"{path}: cannot be read ({error}).") from None
        for name, tensor in tensors.items():
            if name not in expected:
                raise FatalModelError(f"{path}: tensor {name!r} is not part of the network in config.json.")
            if tensor.shape != expected[name]:
                raise FatalModelError(
                    f"{path}: tensor {name!r} is {list(tensor.shape)}, the network has {list(expected[name])}."
                )
            weights[name] = tensor.to(torch.float32)
            if not all(bound.isfinite() for bound in weights[name].aminmax()):  # NaN is both; one pass, no copy
                raise FatalModelError(f"{path}: tensor {name!r} has values that are not finite.")
    missing = sorted(set(expected) - set(weights))
    if missing:
        raise FatalModelError(f"{folder}: tensor {missing[0]!r} is missing ({len(missing)} in all).")
    return weights

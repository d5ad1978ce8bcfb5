"""A network run as the service runs it on a CPU: pictures by the ten thousand take a fraction of the time."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from service.diffusion.schedule import NoiseSchedule
from service.engine.cpu import CpuNetwork
from service.engine.forward import build_forward
from service.models.info import ModelInfo


class ServedNetwork:
    """`(x [B, C, H, W], time [B], class_labels [B]) -> output` of `unet`, which is taken apart; no gradients."""

    def __init__(self, unet: UNet2DModel, dtype: torch.dtype) -> None:
        config = unet.config
        info = ModelInfo(
            name="evaluated",
            path=Path(),
            revision="",
            image_size=config["sample_size"],
            channels=config["in_channels"],
            num_classes=config["num_class_embeds"],
            classes=(),
            schedule=NoiseSchedule(),
        )
        torch.set_num_threads(1)  # the network's own threads have the cores
        with torch.inference_mode():
            forward = build_forward(unet.requires_grad_(False).eval(), info, torch.device("cpu"), dtype)
        self._network = CpuNetwork(forward, len(os.sched_getaffinity(0)))

    @torch.inference_mode()
    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        return self._network(x, time, class_labels)

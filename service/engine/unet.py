"""The body of a diffusers `UNet2DModel`, fed with finished projections of time and class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from service.engine.norm import RowGroupNorm
from service.engine.packing import FusedConv2d

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel


class UNetBody(nn.Module):
    """What is left of a UNet when `service.engine.embedding.Projections` has taken its embeddings out."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.conv_in = unet.conv_in
        self.down_blocks = unet.down_blocks
        self.mid_block = unet.mid_block
        self.up_blocks = unet.up_blocks
        self.conv_norm_out = unet.conv_norm_out
        self.conv_act = unet.conv_act
        self.conv_out = unet.conv_out
        self._centred = bool(unet.config["center_input_sample"])

    def forward(self, x: Tensor, projections: Tensor) -> Tensor:
        """Model output `[B, C, H, W]` for rows `x` and their `projections` `[B, width of all blocks]`."""
        x = self.conv_in(2 * x - 1 if self._centred else x)
        skips = [x]
        for block in self.down_blocks:
            x, new = block(hidden_states=x, temb=projections)
            skips.extend(new)
        if self.mid_block is not None:
            x = self.mid_block(x, projections)
        for block in self.up_blocks:
            assert isinstance(block.resnets, nn.ModuleList)
            count = len(block.resnets)
            x = block(x, tuple(skips[-count:]), projections)
            del skips[-count:]
        if isinstance(self.conv_out, FusedConv2d) and isinstance(self.conv_norm_out, RowGroupNorm):
            return self.conv_out.after(self.conv_norm_out, x, silu=True)
        output: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return output

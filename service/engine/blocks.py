"""Resnet and attention blocks of a diffusers UNet with fewer passes over memory.

Same mathematics as `diffusers.models.resnet.ResnetBlock2D` and `diffusers.models.attention_processor.Attention`
in their plain forms; blocks of another form are left as they are. Inputs are channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from service.engine.norm import RowGroupNorm
from service.engine.packing import Convolution, FusedConv2d

Mix = Callable[[Tensor, int], Tensor]  # as `mix_pixels`

# On a GPU, the quickest first. Flash attention is not among them: it splits a row's sums where there are few rows
WHOLE_SUMS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class QuickResnet(nn.Module):
    """A resnet block: activations in place, the residual added by the last convolution."""

    def __init__(self, block: Any) -> None:
        """`block` is a `ResnetBlock2D`."""
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.conv_shortcut = block.conv_shortcut
        self.resample: Callable[[Tensor], Tensor] | None = (
            block.upsample if block.upsample is not None else block.downsample
        )
        self.time_emb_proj = block.time_emb_proj
        self._scaled = block.time_embedding_norm == "scale_shift"

    @staticmethod
    def replacing(module: nn.Module) -> QuickResnet | None:
        """The quick form of `module`, if it is a block that has one."""
        if (
            type(module) is ResnetBlock2D
            and isinstance(module.nonlinearity, nn.SiLU)
            and module.time_emb_proj is not None
            and module.skip_time_act is True
            and module.time_embedding_norm in ("default", "scale_shift")
            and module.output_scale_factor == 1.0
            and isinstance(module.norm1, RowGroupNorm)
            and isinstance(module.norm2, RowGroupNorm)
            and isinstance(module.conv1, FusedConv2d)
            and isinstance(module.conv2, FusedConv2d)
            and not module.training
        ):
            return QuickResnet(module)
        return None

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """As `ResnetBlock2D`, with `temb` the projections that `service.engine.embedding` gives."""
        if self.resample is None:
            hidden = self.conv1.after(self.norm1, x, silu=True)
        else:
            hidden = self.conv1(self.resample(self.norm1.activated(x)))
            x = self.resample(x)
        modulation, embedding = None, self.time_emb_proj(temb)
        if self._scaled:
            modulation = embedding.chunk(2, dim=1)
        else:
            hidden.add_(embedding[:, :, None, None])
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        output: Tensor = self.conv2.after(self.norm2, hidden, silu=True, modulation=modulation, other=shortcut)
        return output


class QuickAttention(nn.Module):
    """Self-attention over pixels: one projection for query, key and value, and no change of layout."""

    def __init__(self, block: Any, shape: tuple[int, ...], convolution: Convolution, mix: Mix) -> None:
        """`block` is an `Attention`, `shape` the `(C, H, W)` of its input."""
        super().__init__()
        self._mix = mix
        self.norm = block.group_norm
        self._heads = block.heads
        parts = (block.to_q, block.to_k, block.to_v)
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts]) if block.to_q.bias is not None else None
        self.to_qkv = convolution(_pointwise(weight, bias), shape)
        out = block.to_out[0]
        self.to_out = convolution(_pointwise(out.weight, out.bias), (out.in_features, *shape[1:]))

    @staticmethod
    def replacing(
        module: nn.Module, shape: tuple[int, ...], convolution: Convolution, mix: Mix
    ) -> QuickAttention | None:
        """The quick form of `module` for inputs of `shape`, if it is a block that has one."""
        if (
            type(module) is Attention
            and not module.is_cross_attention
            and (module.group_norm is None or isinstance(module.group_norm, RowGroupNorm))
            and module.spatial_norm is None
            and module.norm_q is None
            and module.norm_k is None
            and module.residual_connection
            and module.rescale_output_factor == 1.0
            and module.to_q.out_features == module.to_v.out_features
            and not module.training
        ):
            return QuickAttention(module, shape, convolution, mix)
        return None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """As `Attention` of an image `[B, C, H, W]` with itself; `temb` is passed by some blocks and unused."""
        qkv = self.to_qkv(x) if self.norm is None else self.to_qkv.after(self.norm, x, silu=False)
        output: Tensor = self.to_out.plus(self._mix(qkv, self._heads), x)
        return output


def mix_pixels(qkv: Tensor, heads: int) -> Tensor:
    """For images of queries, keys and values `[B, 3 C, H, W]` what attention makes of the values, `[B, C, H, W]`."""
    rows, _, height, width = qkv.shape
    parts = qkv.permute(0, 2, 3, 1).reshape(rows, height * width, 3, heads, -1)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    with sdpa_kernel(WHOLE_SUMS, set_priority=True) if qkv.is_cuda else nullcontext():
        mixed = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).reshape(rows, height, width, -1).permute(0, 3, 1, 2)


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A linear layer over channels as a convolution of one pixel."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device="meta")
    conv.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return conv


def quicken(
    body: nn.Module, shapes: dict[nn.Module, tuple[int, ...]], convolution: Convolution, mix: Mix = mix_pixels
) -> None:
    """Replaces the blocks of `body` that can be, given the `(C, H, W)` that reaches each."""
    for parent in list(body.modules()):
        for name, child in parent.named_children():
            quick: nn.Module | None = QuickResnet.replacing(child)
            if quick is None and child in shapes:
                quick = QuickAttention.replacing(child, shapes[child], convolution, mix)
            if quick is not None:
                setattr(parent, name, quick)

"""The network of openai/consistency_models, written from its description for the conversion test.

Its layers carry that repository's names, so `state_dict()` is what a published `.pt` holds. Independent of
diffusers and of the converter: attention by plain matrix products, residual blocks that resample between
activation and first convolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def time_features(time: Tensor, width: int) -> Tensor:
    """Cosines then sines of `time` `[B]` at `width / 2` frequencies from 1 down to 1/10000: `[B, width]`."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float32) / (width // 2))
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    """Residual block; `resample` is "up", "down" or None."""

    def __init__(self, channels: int, out: int, emb: int, scale_shift: bool, resample: str | None) -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return x if self.resample is None else functional.avg_pool2d(x, 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resampled(self.in_layers[1](self.in_layers[0](x))))
        change = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = change.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + change)
        return self.skip_connection(self.resampled(x)) + self.out_layers[3](self.out_layers[1](h))


class Attention(nn.Module):
    """Self-attention over pixels: one 1x1 convolution gives all queries, then all keys, then all values."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.heads = channels // head
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, _emb: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.unbind(1)
        weight = torch.softmax(q.transpose(-1, -2) @ k / math.sqrt(channels // self.heads), dim=-1)
        h = (v @ weight.transpose(-1, -2)).reshape(batch, channels, height, width)
        return x + self.proj_out(h)


class OriginalUNet(nn.Module):
    """`attention` lists the levels (0 is full size) with attention; the middle always has it."""

    def __init__(
        self,
        channels: list[int],
        layers: int,
        attention: set[int],
        head: int,
        scale_shift: bool,
        classes: int | None,
    ) -> None:
        super().__init__()
        self.width = width = channels[0]
        emb = 4 * width

        def residual(channels_in: int, out: int, resample: str | None = None) -> Residual:
            return Residual(channels_in, out, emb, scale_shift, resample)

        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes is not None:
            self.label_emb = nn.Embedding(classes, emb)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, width, 3, padding=1)])])
        now, kept = width, [width]
        for level, out in enumerate(channels):
            for _ in range(layers):
                block = [residual(now, out), *([Attention(out, head)] if level in attention else [])]
                self.input_blocks.append(nn.ModuleList(block))
                now = out
                kept.append(now)
            if level < len(channels) - 1:
                self.input_blocks.append(nn.ModuleList([residual(now, now, "down")]))
                kept.append(now)
        self.middle_block = nn.ModuleList([residual(now, now), Attention(now, head), residual(now, now)])
        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(channels))):
            for layer in range(layers + 1):
                block = [residual(now + kept.pop(), out)]
                now = out
                if level in attention:
                    block.append(Attention(now, head))
                if level > 0 and layer == layers:
                    block.append(residual(now, now, "up"))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.time_embed(time_features(time, self.width))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        h = self.input_blocks[0][0](x)
        kept = [h]
        for block in self.input_blocks[1:]:
            for layer in block:
                h = layer(h, emb)
            kept.append(h)
        for layer in self.middle_block:
            h = layer(h, emb)
        for block in self.output_blocks:
            h = torch.cat([h, kept.pop()], dim=1)
            for layer in block:
                h = layer(h, emb)
        return self.out(h)

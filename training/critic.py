"""A critic for distillation: tells noised samples from noised avatars by what the teacher sees in them.

Adversarial diffusion distillation with a diffusion model's own features (Sauer et al. 2024, "Fast High-Resolution
Image Synthesis with Latent Adversarial Diffusion Distillation"): the teacher stays as it is, small heads on its
decoder's features learn, for every place in the picture. Distribution matching alone prefers the likeliest
pictures; the critic compares with real ones and so notices colours and contrast that are missing.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from training.network import denoiser

WIDTH = 64  # channels of a head


class Eye(nn.Module):
    """The teacher with its decoder's features: `(x, sigma [B], class_labels) -> (x0 estimate, features)`.

    Features are float32 `[B, C, H, W]`, of the middle block and of every block after it.
    """

    def __init__(self, unet: UNet2DModel, autocast: bool) -> None:
        super().__init__()
        self.unet, self.estimate = unet, denoiser(unet, autocast)
        self.seen: list[Tensor] = []
        for block in (unet.mid_block, *unet.up_blocks):
            block.register_forward_hook(self._see)

    @property
    def channels(self) -> list[int]:
        """Of each of the features."""
        reversed_widths = list(reversed(self.unet.config.block_out_channels))
        return [reversed_widths[0], *reversed_widths]

    def _see(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen.append(output.float())

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As a `Denoiser`, and what it saw."""
        estimate = self.estimate(x, sigma, class_labels)
        features, self.seen = self.seen, []
        return estimate, features


class Head(nn.Module):
    """Features `[B, C, H, W]` and classes to a logit for every place `[B, H, W]`, large for real ones."""

    scale: Tensor

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.zeros(channels))
        self.scaled = False  # known here, too: to look into the buffer would wait for a GPU
        self.first = nn.Conv2d(channels, WIDTH, 1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.plain = nn.Conv2d(WIDTH, 1, 1)
        self.by_class = nn.Embedding(num_classes, WIDTH)

    def forward(self, features: Tensor, class_labels: Tensor) -> Tensor:
        """Channels are scaled by what the first features ever seen had, so that contrast is not normalised away."""
        if not self.scaled and not self.scale.any():
            self.scale.copy_(features.detach().square().mean((0, 2, 3)).sqrt().clamp(min=1e-3))
        self.scaled = True
        h = nn.functional.leaky_relu(self.first(features / self.scale.view(1, -1, 1, 1)), 0.2)
        h = nn.functional.leaky_relu(self.second(h), 0.2)
        return self.plain(h)[:, 0] + torch.einsum("bchw,bc->bhw", h, self.by_class(class_labels)) / WIDTH**0.5


class Critic(nn.Module):
    """One head for each of the features."""

    def __init__(self, channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(count, num_classes) for count in channels)

    def forward(self, features: list[Tensor], class_labels: Tensor) -> list[Tensor]:
        """Logits `[B, H, W]` of every head."""
        return [head(f, class_labels) for head, f in zip(self.heads, features, strict=True)]


def hinge(real: list[Tensor], made: list[Tensor]) -> Tensor:
    """The critic's loss: real places should have at least 1, made ones at most -1; the mean over heads."""
    losses = [(1 - r).relu().mean() + (1 + m).relu().mean() for r, m in zip(real, made, strict=True)]
    return torch.stack(losses).mean()


def pull(made: list[Tensor], noisy: Tensor) -> Tensor:
    """For every value of `noisy` `[B, C, H, W]` where the critic likes it less: minus is towards real."""
    opinion = torch.stack([logits.flatten(1).mean(1) for logits in made]).mean(0).sum()
    return -torch.autograd.grad(opinion, noisy)[0]

"""The UNet that diffusers serves, its preconditioning, and its moving average."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.recipe import CLASSES, NetworkSettings

SIGMA_DATA, SIGMA_MIN, SIGMA_MAX = 0.5, 0.002, 80.0

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def build_unet(settings: NetworkSettings, num_classes: int = len(CLASSES)) -> UNet2DModel:
    """A class-conditional UNet with fresh weights."""
    sizes = [settings.image_size // 2**i for i in range(len(settings.block_out_channels))]
    down = ["AttnDownBlock2D" if size in settings.attention_at else "DownBlock2D" for size in sizes]
    up = ["AttnUpBlock2D" if size in settings.attention_at else "UpBlock2D" for size in reversed(sizes)]
    unet = UNet2DModel(
        sample_size=settings.image_size,
        in_channels=3,
        out_channels=3,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=settings.block_out_channels,
        layers_per_block=settings.layers_per_block,
        norm_num_groups=settings.norm_num_groups,
        attention_head_dim=settings.attention_head_dim,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=num_classes,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)  # the first estimate is c_skip x, as in EDM
    torch.nn.init.zeros_(unet.conv_out.bias)
    return unet


def unet_of(folder: Path) -> UNet2DModel:
    """The network of a pipeline folder, in float32."""
    unet: UNet2DModel = UNet2DModel.from_pretrained(
        folder, subfolder="unet", torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    return unet


def boundary_scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in of a consistency model (Song et al. 2023, App. C); identity at sigma_min."""
    c_skip = SIGMA_DATA**2 / ((sigma - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
    c_in = (sigma**2 + SIGMA_DATA**2) ** -0.5
    return c_skip, (sigma - SIGMA_MIN) * SIGMA_DATA * c_in, c_in


def network_time(sigma: Tensor) -> Tensor:
    """What diffusers passes to the network as its timestep: 250 ln sigma, float32 `[B]`."""
    return (250 * sigma.double().log()).float()


class Network(nn.Module):
    """A UNet as `(x, time, class_labels) -> output`, in bfloat16 if asked."""

    def __init__(self, unet: nn.Module, autocast: bool) -> None:
        super().__init__()
        self.unet, self.autocast = unet, autocast

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        # a graph must not keep casts that it has not made itself
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False):
            output: Tensor = self.unet(x, time, class_labels=class_labels).sample
        return output


def denoiser(unet: torch.nn.Module, autocast: bool = False, compiled: bool = False) -> Denoiser:
    """`(x, sigma [B], class_labels) -> x0 estimate`; only the network runs in bfloat16 or compiled, if asked."""
    return denoiser_of(Network(torch.compile(unet) if compiled else unet, autocast))


def denoiser_of(network: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Denoiser:
    """The denoiser around a network `(x, network time [B], class_labels) -> output`."""

    def denoise(x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        c_skip, c_out, c_in = (c.view(-1, 1, 1, 1) for c in boundary_scalings(sigma))
        return c_skip * x + c_out * network(x * c_in, network_time(sigma), class_labels).float()

    return denoise


def silent_time_columns(unet: UNet2DModel, cutoff: float) -> Tensor:
    """Inputs of the time embedding whose period is under `cutoff` in ln sigma: bool `[embedding]`.

    Network time is 250 ln sigma, so most of the sinusoids turn many times between neighbouring noise levels;
    they are noise to a network that has seen few levels, and keep it from being smooth in time.
    """
    size = unet.time_embedding.linear_1.in_features
    half = size // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half) / half)  # radians per unit of network time
    short = 2 * math.pi / (250 * frequency) < cutoff
    return torch.cat([short, short])


@torch.no_grad()
def silence(unet: UNet2DModel, columns: Tensor) -> None:
    """Sets the weights of those time inputs to zero."""
    unet.time_embedding.linear_1.weight.masked_fill_(columns, 0)


class MovingAverage:
    """Exponential moving average of a network's weights, float32."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.steps = 0
        self.weights = {name: value.detach().clone() for name, value in unet.state_dict().items()}

    @torch.no_grad()
    def update(self, unet: torch.nn.Module, ceiling: float) -> None:
        """Moves towards the network; quickly in the first steps, so that the start is soon forgotten."""
        self.steps += 1
        decay = min(ceiling, (1 + self.steps) / (10 + self.steps))
        current = unet.state_dict()
        get_ema_multi_avg_fn(decay)(list(self.weights.values()), [current[name] for name in self.weights], None)

"""Networks that a GPU would replay: on a CPU they run as ever."""

from __future__ import annotations

import torch

from training.network import build_unet, denoiser
from training.recipe import PRESETS


def test_on_a_cpu_nothing_is_replayed() -> None:
    """The same values and gradients, for as many rows as would be and for others."""
    torch.manual_seed(0)
    unet = build_unet(PRESETS["smoke"].network)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    plain, replayed = denoiser(unet), denoiser(unet, rows=3)
    for rows in (3, 2):
        x, sigma, labels = torch.randn(rows, 3, 16, 16), torch.rand(rows) + 0.1, torch.arange(rows)
        found = []
        for denoise in (plain, replayed):
            unet.zero_grad()
            made = denoise(x, sigma, labels)
            made.square().sum().backward()
            assert unet.conv_in.weight.grad is not None
            found.append((made.detach(), unet.conv_in.weight.grad.clone()))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])

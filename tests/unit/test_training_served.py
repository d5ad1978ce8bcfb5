"""A network that evaluation runs as the service does gives what it gives otherwise."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from training.network import build_unet, denoiser, denoiser_of
from training.recipe import NetworkSettings
from training.served import ServedNetwork


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_estimates_are_those_of_the_network(dtype: torch.dtype, apart: float) -> None:
    torch.manual_seed(0)
    unet = build_unet(NetworkSettings(8, (8, 16), (4,), norm_num_groups=4, attention_head_dim=4))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    served = denoiser_of(ServedNetwork(copy.deepcopy(unet), dtype))
    x, sigma, labels = torch.randn(5, 3, 8, 8), torch.linspace(0.1, 2.0, 5), torch.arange(5)
    with torch.no_grad():
        expected, found = denoiser(unet.eval())(x, sigma, labels), served(x, sigma, labels)
    assert (found - expected).abs().max() <= apart * expected.abs().max()

"""The critic of the distillation: the teacher's features, heads that learn, and where they pull."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from training.critic import Critic, Eye, hinge, pull
from training.network import build_unet, denoiser
from training.recipe import CLASSES, PRESETS

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    """The smallest preset's network with an output that is not zero."""
    torch.manual_seed(0)
    network = build_unet(PRESETS["smoke"].network).eval().requires_grad_(False)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return network


def noised(offset: float) -> tuple[Tensor, Tensor, Tensor]:
    """Plain pictures of one brightness under noise, their noise levels and classes."""
    generator = torch.Generator().manual_seed(1)
    sigma = torch.tensor([0.2, 0.5, 1.0, 2.0] * 2)
    noise = torch.randn((8, 3, 16, 16), generator=generator)
    return offset + sigma.view(-1, 1, 1, 1) * noise, sigma, torch.arange(8)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_eye_estimates_as_the_denoiser_does(unet: UNet2DModel, autocast: bool) -> None:
    """The same bits, and a feature for the middle block and every block after it."""
    eye = Eye(unet, autocast)
    estimate, features = eye(*noised(0.3))
    torch.testing.assert_close(estimate, denoiser(unet, autocast)(*noised(0.3)), rtol=0, atol=0)
    assert [f.shape[1] for f in features] == eye.channels
    assert [f.shape[-1] for f in features] == [8, 16, 16]
    assert {f.dtype for f in features} == {torch.float32}


def test_the_critic_learns_and_pulls_towards_real_pictures(unet: UNet2DModel) -> None:
    """Taught that real pictures are bright, it tells them apart, and its pull makes dark ones brighter."""
    torch.manual_seed(0)
    eye = Eye(unet, autocast=False)
    critic = Critic(eye.channels, len(CLASSES))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    bright, sigma, labels = noised(0.7)
    dark = noised(-0.7)[0]
    losses = []
    for _ in range(60):
        loss = hinge(critic(eye(bright, sigma, labels)[1], labels), critic(eye(dark, sigma, labels)[1], labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1.5
    assert losses[-1] < 0.5

    noisy = dark.clone().requires_grad_()
    direction = pull(critic(eye(noisy, sigma, labels)[1], labels), noisy)
    assert float(direction.mean()) < 0
    better = noisy.detach() - 20 * direction / direction.norm()

    @torch.no_grad()
    def opinion(x: Tensor) -> float:
        return sum(float(logits.mean()) for logits in critic(eye(x, sigma, labels)[1], labels))

    assert opinion(better) > opinion(dark)


def test_hinge_asks_for_a_margin_and_no_more() -> None:
    """Nothing is lost where real places have 1 and made ones -1 or beyond; each unit short of it costs one."""
    ones = torch.ones(2, 4, 4)
    assert float(hinge([3 * ones, ones], [-ones, -2 * ones])) == 0.0
    assert float(hinge([0 * ones], [0.5 * ones])) == pytest.approx(1 + 1.5)

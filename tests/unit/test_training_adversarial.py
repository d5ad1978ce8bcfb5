"""The critic learns to tell real pictures from made ones, and pulls towards the real."""

from __future__ import annotations

import pytest
import torch

from training.adversarial import Adversary
from training.recipe import AdversarialSettings

SETTINGS = AdversarialSettings(width=8, weight=0.5)


def adversary() -> Adversary:
    torch.manual_seed(0)
    return Adversary(SETTINGS, image_size=16, num_classes=2, device="cpu")


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Real pictures are bright in class 0 and dark in class 1; made ones are the other way round."""
    labels = torch.arange(2).repeat(8)
    brightness = torch.where(labels == 0, 0.8, -0.8).view(-1, 1, 1, 1)
    real, made = (sign * brightness + 0.05 * torch.randn(16, 3, 16, 16) for sign in (1, -1))
    return made, real, labels


def test_the_pull_leads_towards_what_the_class_looks_like() -> None:
    """After some steps of the critic, its gradient makes pictures brighter in one class and darker in the other."""
    taught = adversary()
    losses = [taught.learn(*batch()) for _ in range(150)]
    assert losses[-1] < 0.5 * losses[0]
    made, real, labels = batch()
    downhill = -taught.pull(made, real, labels, like=torch.ones_like(made))
    assert float(downhill[labels == 0].mean()) > 0
    assert float(downhill[labels == 1].mean()) < 0


def test_the_pull_is_as_large_as_its_weight_says() -> None:
    """Its root mean square is `weight` of that of the gradient beside it, however far the critic has learnt."""
    fresh = adversary()
    made, real, labels = batch()
    for scale in (1.0, 30.0):
        like = scale * torch.randn_like(made)
        pulled = fresh.pull(made, real, labels, like=like)
        assert float(pulled.square().mean().sqrt()) == pytest.approx(0.5 * float(like.square().mean().sqrt()), rel=0.01)


def test_the_critic_keeps_its_hands_off_the_estimate() -> None:
    """Learning leaves no gradient on the pictures that it was shown."""
    made, real, labels = (x.requires_grad_() if x.is_floating_point() else x for x in batch())
    adversary().learn(made, real, labels)
    assert made.grad is None
    assert real.grad is None

"""The last phase: the consistency model's pictures are drawn to the distribution that a diffusion model knows.

Distribution matching distillation (Yin et al. 2024, "One-step Diffusion with Distribution Matching Distillation"). Two
denoisers look at the same noised sample: the teacher knows real pictures; the other one, *fake*, learns meanwhile what
the model makes. Where they disagree, the sample is moved from the fake's estimate towards the teacher's. A part of the
tuning loss keeps the model consistent at all noise levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.critic import Critic, Eye, hinge, pull
from training.data import Avatars
from training.losses import consistency_loss, denoising_loss, draw_sigma, nearer_sigma
from training.network import build_unet, denoiser, silence
from training.recipe import CLASSES, Recipe
from training.starts import draw_starts
from training.trainer import Trainer

NOISED, NOISED_FROM = 0.25, 2.0  # share of samples that begin at noised pictures, and the least noise of those
LOOK_FROM = 0.05  # the least noise at which the denoisers look at samples
FAKE_LEARNING_RATE = 2e-4
CRITIC_LEARNING_RATE = 2e-4
FAKE_LOOKS = 2  # how often the fake learns from a batch
MATCHING, TUNING = 20.0, 0.005  # weights of the two losses
CRITIC = 0.7  # the critic's pull on a batch as a share of the matching one
TUNING_ROWS = 0.2  # of a batch, besides it


class Distiller(Trainer):
    """Phase "distill". Batches are samples that the model makes; real pictures serve as starts and for tuning."""

    largest_gradient: float = 1.0
    replayable = False

    def __init__(
        self,
        recipe: Recipe,
        data: Avatars,
        run: Path,
        device: str,
        bf16: bool,
        compiled: bool,
        teacher: dict[str, Tensor],
    ) -> None:
        super().__init__(recipe, "distill", data, run, device, bf16)  # tuning has rows of any number: not compiled
        self.make = denoiser(self.unet, bf16, compiled)
        networks = [build_unet(recipe.network).to(device, memory_format=torch.channels_last) for _ in range(2)]
        for network in networks:
            network.load_state_dict(teacher)
            silence(network, self.silent)
        eye, self.fake = Eye(networks[0].eval().requires_grad_(False), bf16), networks[1]
        self.critic = Critic(eye.channels, len(CLASSES)).to(device)
        self.eye = torch.compile(eye) if compiled else eye
        self.fake_denoise = denoiser(self.fake, bf16, compiled)
        self.optimizer = self._adam(self.unet, self.phase.learning_rate)
        self.fake_optimizer = self._adam(self.fake, FAKE_LEARNING_RATE)
        self.critic_optimizer = self._adam(self.critic, CRITIC_LEARNING_RATE)

    @staticmethod
    def _adam(network: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Of short memory: what the other network does changes all the time."""
        return torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.5, 0.99), weight_decay=0)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins with these weights, and lets the fake and the critic learn what they make."""
        super().start_from(weights)
        for _ in range(self.phase.ahead):
            with torch.no_grad():
                samples, labels = self._make()
            self._look(samples, labels)

    def loss(self) -> Tensor:
        """Of new samples: its gradient is what matching, critic and tuning ask for, its value says little."""
        samples, labels = self._make()
        direction = self._look(samples.detach(), labels)
        for _ in range(1, FAKE_LOOKS):
            sigma = self._levels(len(samples))
            self._teach_fake(samples.detach(), self._noised(samples.detach(), sigma), sigma, labels)
        return MATCHING * (samples * direction).mean() + TUNING * self._tuning_loss().mean()

    def _make(self) -> tuple[Tensor, Tensor]:
        """Samples `[B, 3, H, W]` with gradient, and their class labels."""
        x, sigma, labels, _ = draw_starts(self.data, self.phase.batch, NOISED, NOISED_FROM, self.generator)
        return self.make(x, sigma, labels), labels

    def _look(self, samples: Tensor, labels: Tensor) -> Tensor:
        """Against which direction samples `[B, 3, H, W]` should move; the fake and the critic then learn from them."""
        sigma = self._levels(len(samples))
        noisy = self._noised(samples, sigma).requires_grad_()
        real, seen = self.eye(noisy, sigma, labels)
        by_critic = pull(self.critic(seen, labels), noisy)
        fake = self._teach_fake(samples, noisy.detach(), sigma, labels)
        self._teach_critic([f.detach() for f in seen], labels, sigma)
        matching = matching_direction(samples, real.detach(), fake)
        return matching + CRITIC * by_critic * (matching.norm() / by_critic.norm().clamp(min=1e-12))

    def _teach_fake(self, samples: Tensor, noisy: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """One step of the fake; its estimates `[B, 3, H, W]` before it."""
        fake = self.fake_denoise(noisy, sigma, labels)
        denoising_loss(fake, samples, sigma).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.fake.parameters(), self.largest_gradient)
        self.fake_optimizer.step()
        self.fake_optimizer.zero_grad(set_to_none=True)
        silence(self.fake, self.silent)
        return fake.detach()

    def _teach_critic(self, made: list[Tensor], labels: Tensor, sigma: Tensor) -> None:
        """One step of the critic, with as many avatars at the same noise levels."""
        pictures, kept = self.data.batch(len(labels), self.generator)
        with torch.no_grad():
            seen = self.eye(self._noised(pictures, sigma), sigma, kept)[1]
        hinge(self.critic(seen, kept), self.critic(made, labels)).backward()
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad(set_to_none=True)

    def _levels(self, size: int) -> Tensor:
        return draw_sigma(size, self.phase, self.generator).clamp(min=LOOK_FROM)

    def _noised(self, x: Tensor, sigma: Tensor) -> Tensor:
        noisy = x + sigma.view(-1, 1, 1, 1) * self._noise(x.shape)
        return noisy.contiguous(memory_format=torch.channels_last)

    def _tuning_loss(self) -> Tensor:
        """Of rows of real pictures, as in the first stage of tuning."""
        tune = self.recipe.tune
        x0, labels = self.data.batch(max(1, int(self.phase.batch * TUNING_ROWS)), self.generator)
        t = draw_sigma(len(x0), tune, self.generator)
        r = nearer_sigma(t, tune.first_stage, tune.q)
        return consistency_loss(self.denoise, x0, labels, t, r, self._noise(x0.shape), tune.weighting == "balanced")

    def _noise(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def _others(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        """What learns beside the model, by its name in the state."""
        return {
            "fake": self.fake,
            "fake_optimizer": self.fake_optimizer,
            "critic": self.critic,
            "critic_optimizer": self.critic_optimizer,
        }

    def state(self) -> dict[str, Any]:
        """The model's, the fake's and the critic's."""
        return super().state() | {name: part.state_dict() for name, part in self._others().items()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        for name, part in self._others().items():
            part.load_state_dict(state[name])


def matching_direction(samples: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(fake - real) / |sample - real| for every value `[B, C, H, W]`: minus is towards real.

    `real` and `fake` are the two denoisers' estimates; the divisor is a mean of the row.
    """
    return (fake - real) / (samples - real).abs().mean((1, 2, 3), keepdim=True).clamp(min=0.02)

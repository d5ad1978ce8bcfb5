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

from training.data import Avatars
from training.losses import consistency_loss, denoising_loss, draw_sigma, nearer_sigma
from training.network import SIGMA_MAX, build_unet, denoiser, silence
from training.recipe import CLASSES, Recipe
from training.trainer import Trainer

AT_SIGMA_MAX = 0.75  # share of samples made from noise alone; the others from noised pictures, as later steps are
NOISED_FROM = 2.0  # the least noise of those
LOOK_FROM = 0.1  # the least noise at which the denoisers look at samples
FAKE_LEARNING_RATE = 2e-4
FAKE_AHEAD = 15  # batches that the fake learns before the model moves
MATCHING, TUNING = 20.0, 0.005  # weights of the two losses
TUNING_ROWS = 0.2  # of a batch, besides it


class Distiller(Trainer):
    """Phase "distill". Batches are samples that the model makes; real pictures serve as starts and for tuning."""

    largest_gradient: float = 1.0

    def __init__(
        self, recipe: Recipe, data: Avatars, run: Path, device: str, bf16: bool, teacher: dict[str, Tensor]
    ) -> None:
        super().__init__(recipe, "distill", data, run, device, bf16)
        networks = [build_unet(recipe.network).to(device, memory_format=torch.channels_last) for _ in range(2)]
        for network in networks:
            network.load_state_dict(teacher)
            silence(network, self.silent)
        known, self.fake = networks[0].eval().requires_grad_(False), networks[1]
        self.teacher_denoise, self.fake_denoise = denoiser(known, bf16), denoiser(self.fake, bf16)
        self.optimizer = self._adam(self.unet, self.phase.learning_rate)
        self.fake_optimizer = self._adam(self.fake, FAKE_LEARNING_RATE)

    @staticmethod
    def _adam(network: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Of short memory: what the other network does changes all the time."""
        return torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.5, 0.99), weight_decay=0)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begins with these weights, and lets the fake learn what they make."""
        super().start_from(weights)
        for _ in range(FAKE_AHEAD):
            with torch.no_grad():
                samples, labels = self._make()
            self._look(samples, labels)

    def loss(self) -> Tensor:
        """Of new samples: its gradient is what matching and tuning ask for, its value says little."""
        samples, labels = self._make()
        real, fake = self._look(samples.detach(), labels)
        return MATCHING * matching_loss(samples, real, fake).mean() + TUNING * self._tuning_loss().mean()

    def _make(self) -> tuple[Tensor, Tensor]:
        """Samples `[B, 3, H, W]` with gradient, and their class labels."""
        size = self.phase.batch
        noised = max(1, int(size * (1 - AT_SIGMA_MAX)))
        pictures, kept = self.data.batch(noised, self.generator, self.device)
        labels = torch.randint(len(CLASSES), (size,), generator=self.generator).to(self.device)
        labels[:noised] = kept
        sigma = torch.full((size,), SIGMA_MAX, device=self.device)
        place = torch.rand(noised, generator=self.generator).to(self.device)
        sigma[:noised] = NOISED_FROM * (SIGMA_MAX / NOISED_FROM) ** place
        x = self._noise((size, *pictures.shape[1:])) * sigma.view(-1, 1, 1, 1)
        x[:noised] += pictures
        return self.denoise(x.contiguous(memory_format=torch.channels_last), sigma, labels), labels

    def _look(self, samples: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher and the fake make of noised samples `[B, 3, H, W]`; the fake then learns from its own."""
        sigma = draw_sigma(len(samples), self.phase, self.generator).clamp(min=LOOK_FROM).to(self.device)
        noisy = samples + sigma.view(-1, 1, 1, 1) * self._noise(samples.shape)
        with torch.no_grad():
            real = self.teacher_denoise(noisy, sigma, labels)
        fake = self.fake_denoise(noisy, sigma, labels)
        denoising_loss(fake, samples, sigma).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.fake.parameters(), self.largest_gradient)
        self.fake_optimizer.step()
        self.fake_optimizer.zero_grad(set_to_none=True)
        silence(self.fake, self.silent)
        return real, fake.detach()

    def _tuning_loss(self) -> Tensor:
        """Of rows of real pictures, as in the first stage of tuning."""
        tune = self.recipe.tune
        x0, labels = self.data.batch(max(1, int(self.phase.batch * TUNING_ROWS)), self.generator, self.device)
        t = draw_sigma(len(x0), tune, self.generator).to(self.device)
        r = nearer_sigma(t, tune.first_stage, tune.q)
        return consistency_loss(self.denoise, x0, labels, t, r, self._noise(x0.shape), tune.weighting == "balanced")

    def _noise(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def state(self) -> dict[str, Any]:
        """The model's, and the fake's."""
        fake = {"fake": self.fake.state_dict(), "fake_optimizer": self.fake_optimizer.state_dict()}
        return super().state() | fake

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.fake.load_state_dict(state["fake"])
        self.fake_optimizer.load_state_dict(state["fake_optimizer"])


def matching_loss(samples: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Loss of each row `[B]` whose gradient is (fake - real) / |sample - real| for every value, in means of a row.

    `real` and `fake` are the two denoisers' estimates `[B, C, H, W]`, without gradient.
    """
    scale = (samples.detach() - real).abs().mean((1, 2, 3), keepdim=True).clamp(min=0.02)
    return (samples * (fake - real) / scale).mean((1, 2, 3))

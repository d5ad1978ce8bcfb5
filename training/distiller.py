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
LOOK_AT = (0.15, 8.0)  # noise levels at which the two denoisers are compared, evenly in ln sigma
FAKE_LEVELS = (0.1, 20.0)  # noise levels on which the fake is trained
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
            self._teach_fake(samples, labels)

    def loss(self) -> Tensor:
        """Of new samples: its gradient is what matching and tuning ask for, its value says little."""
        samples, labels = self._make()
        made = samples.detach()
        with torch.no_grad():
            sigma = self._log_uniform(len(made), *LOOK_AT)
            noisy = made + sigma.view(-1, 1, 1, 1) * self._noise(made.shape)
            real, fake = (look(noisy, sigma, labels) for look in (self.teacher_denoise, self.fake_denoise))
        loss = MATCHING * matching_loss(samples, real, fake).mean() + TUNING * self._tuning_loss().mean()
        self._teach_fake(made, labels)
        return loss

    def _make(self) -> tuple[Tensor, Tensor]:
        """Samples `[B, 3, H, W]` with gradient, and their class labels."""
        size = self.phase.batch
        noised = max(1, int(size * (1 - AT_SIGMA_MAX)))
        pictures, kept = self.data.batch(noised, self.generator, self.device)
        labels = torch.randint(len(CLASSES), (size,), generator=self.generator).to(self.device)
        labels[:noised] = kept
        sigma = torch.full((size,), SIGMA_MAX, device=self.device)
        sigma[:noised] = self._log_uniform(noised, NOISED_FROM, SIGMA_MAX)
        x = self._noise((size, *pictures.shape[1:])) * sigma.view(-1, 1, 1, 1)
        x[:noised] += pictures
        return self.denoise(x.contiguous(memory_format=torch.channels_last), sigma, labels), labels

    def _teach_fake(self, samples: Tensor, labels: Tensor) -> None:
        """One step of the denoising loss on samples."""
        sigma = draw_sigma(len(samples), self.phase, self.generator).clamp(*FAKE_LEVELS).to(self.device)
        loss = denoising_loss(self.fake_denoise, samples, labels, sigma, self._noise(samples.shape)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.fake.parameters(), self.largest_gradient)
        self.fake_optimizer.step()
        self.fake_optimizer.zero_grad(set_to_none=True)
        silence(self.fake, self.silent)

    def _tuning_loss(self) -> Tensor:
        """Of rows of real pictures, as in the first stage of tuning."""
        tune = self.recipe.tune
        x0, labels = self.data.batch(max(1, int(self.phase.batch * TUNING_ROWS)), self.generator, self.device)
        t = draw_sigma(len(x0), tune, self.generator).to(self.device)
        r = nearer_sigma(t, tune.first_stage, tune.q)
        return consistency_loss(self.denoise, x0, labels, t, r, self._noise(x0.shape), tune.weighting == "balanced")

    def _noise(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def _log_uniform(self, size: int, low: float, high: float) -> Tensor:
        place = torch.rand(size, generator=self.generator).to(self.device)
        return low * (high / low) ** place

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

"""One phase of a recipe, step by step: pre-training, tuning, or consistency training from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import UNet2DModel
from torch import Tensor

from training.data import Avatars
from training.graphs import Replayed
from training.losses import consistency_loss, denoising_loss, draw_sigma, nearer_sigma, stage_of
from training.network import MovingAverage, build_unet, denoiser, silence, silent_time_columns
from training.recipe import CLASSES, Phase, Recipe
from training.sampling import consistency_sample, heun_sample, to_uint8
from training.sheets import save_sheet
from training.state import load_state, save_state, save_weights


class Trainer:
    """One phase: the network, its average, the optimizer and the random state, all resumable."""

    largest_gradient: float | None = None  # norm to which gradients are clipped
    replayable: ClassVar[bool] = True  # whether a step's sizes never change and it never waits for a GPU
    fitted: int | None = None  # the length that `set_length` gave the phase
    own: tuple[Tensor, ...] | None = None  # what a step leaves for the next one, where a phase begins at that
    _replayed: Replayed | None = None

    def __init__(
        self, recipe: Recipe, name: Phase, data: Avatars, run: Path, device: str, bf16: bool, compiled: bool = False
    ) -> None:
        self.recipe, self.name, self.phase = recipe, name, recipe.phase(name)
        self.data, self.run, self.device, self.bf16 = data, run, device, bf16
        self.unet = build_unet(recipe.network).to(device, memory_format=torch.channels_last)
        self.silent = silent_time_columns(self.unet, recipe.network.time_cutoff).to(device)
        silence(self.unet, self.silent)
        self.denoise = denoiser(self.unet, bf16, compiled)
        self.average = MovingAverage(self.unet)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=self.phase.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.generator = torch.Generator(device).manual_seed(0)
        self.images = self.steps = 0

    def replay(self) -> None:
        """From now on, gradients come from a CUDA graph. ValueError where a phase's steps differ."""
        if not self.replayable:
            raise ValueError(f"steps of phase {self.name} cannot be replayed")
        self._replayed = Replayed(self._gradients, self.optimizer.zero_grad, self.generator)

    def set_length(self, images: int) -> None:
        """The phase ends after so many; learning rate and stages follow."""
        self.fitted = images
        self.recipe = self.recipe.with_phase(self.name, images=images)
        self.phase = self.recipe.phase(self.name)

    def start_from(self, weights: dict[str, torch.Tensor]) -> None:
        """Begins the phase with these weights."""
        self.unet.load_state_dict(weights)
        silence(self.unet, self.silent)
        self.average = MovingAverage(self.unet)

    def learning_rate(self) -> float:
        """Linear warm-up, then linear decay to a twentieth at the end of the phase."""
        warm = min(1.0, (self.steps + 1) / max(1, self.phase.warmup))
        left = max(0.0, 1 - self.images / self.phase.images)
        return self.phase.learning_rate * warm * (0.05 + 0.95 * left)

    def step(self) -> Tensor:
        """One batch; the mean loss before it, `[]`: reading it waits for a GPU."""
        if self._replayed is not None:
            loss = self._replayed(stage_of(self.images, self.phase))
        else:
            self.optimizer.zero_grad()
            loss = self._gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        if self.largest_gradient is not None:
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), self.largest_gradient)
        self.optimizer.step()
        silence(self.unet, self.silent)
        self.average.update(self.unet, self.phase.ema)
        self.steps += 1
        self.images += self.phase.batch
        return loss

    def _gradients(self) -> Tensor:
        """Of a new batch, in the weights; its loss."""
        before = self.own
        loss = self.loss()
        loss.backward()
        if before is not None and self.own is not None:  # a graph finds it where it was
            for there, new in zip(before, self.own, strict=True):
                there.copy_(new)
            self.own = before
        return loss.detach()

    def loss(self) -> Tensor:
        """Of a new batch, its mean."""
        phase, size = self.phase, self.phase.batch
        x0, labels = self.data.batch(size, self.generator)
        x0 = x0.contiguous(memory_format=torch.channels_last)
        t = draw_sigma(size, phase, self.generator)
        noise = torch.randn(x0.shape, generator=self.generator, device=self.device)
        if self.name == "pretrain":
            denoised = self.denoise(x0 + noise * t.view(-1, 1, 1, 1), t, labels)
            return denoising_loss(denoised, x0, t).mean()
        r = nearer_sigma(t, stage_of(self.images, phase), phase.q)
        return consistency_loss(self.denoise, x0, labels, t, r, noise, phase.weighting == "balanced").mean()

    def result(self) -> dict[str, Tensor]:
        """The weights that the phase leaves: averaged."""
        return self.average.weights

    def save(self) -> None:
        """Weights for use, and the whole state for going on."""
        save_weights(self.run / f"{self.name}.safetensors", self.result(), self.recipe.as_json())
        save_state(self.run / f"{self.name}.state", self.state())

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "unet": self.unet.state_dict(),
            "average": self.average.weights,
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "images": self.images,
            "steps": self.steps,
            "fitted": self.fitted,
        }

    def resume(self) -> bool:
        """Goes on from the last `save`, if there was one."""
        path = self.run / f"{self.name}.state"
        if not path.exists():
            return False
        self.restore(load_state(path, self.device))
        return True

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.unet.load_state_dict(state["unet"])
        self.average.weights, self.average.steps = state["average"], state["average_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.images, self.steps = state["images"], state["steps"]
        if state.get("fitted") is not None:
            self.set_length(state["fitted"])

    def sheet(self, per_class: int = 4) -> None:
        """Samples of the phase's result beside real pictures, for the eye."""
        eye = UNet2DModel.from_config(self.unet.config).to(self.device, memory_format=torch.channels_last)
        eye.load_state_dict(self.result())
        denoise, size = denoiser(eye.eval()), self.data.image_size
        labels = torch.arange(len(CLASSES)).repeat_interleave(per_class).to(self.device)
        seeds = range(len(labels))
        real = self.data.take(per_class)[0]
        if self.name == "pretrain":
            groups = [real, to_uint8(heun_sample(denoise, labels, seeds, size, 10))]
        else:
            runs = [consistency_sample(denoise, labels, seeds, size, steps) for steps in ([0], [22, 0])]
            groups = [real, *map(to_uint8, runs)]
        shaped = [group.reshape(len(CLASSES), per_class, size, size, 3) for group in groups]
        save_sheet(self.run / "sheets" / f"{self.name}-{self.images:08d}.png", shaped)

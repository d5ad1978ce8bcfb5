"""Trains one phase of a recipe; run it again to go on where it stopped.

    python -m training.train --preset 32 --phase pretrain --data training/data/32 --run training/runs/32
    python -m training.train --preset 32 --phase tune     --data training/data/32 --run training/runs/32

Leaves `<phase>.safetensors` (the averaged weights, float32) and sample sheets in the run's folder. `--seconds`
ends a call early, `--images` changes the length of the phase, `--init` starts from a pipeline folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from training.data import Avatars
from training.losses import consistency_loss, denoising_loss, draw_sigma, nearer_sigma, stage_of
from training.network import MovingAverage, build_unet, denoiser, silence, silent_time_columns
from training.recipe import CLASSES, PRESETS, Phase, PhaseSettings, Recipe
from training.sampling import consistency_sample, heun_sample, to_uint8
from training.sheets import save_sheet
from training.state import load_state, load_weights, save_state, save_weights


class Trainer:
    """One phase: the network, its average, the optimizer and the random state, all resumable."""

    def __init__(self, recipe: Recipe, name: Phase, data: Avatars, run: Path, device: str, bf16: bool) -> None:
        self.recipe, self.name, self.phase = recipe, name, recipe.phase(name)
        self.data, self.run, self.device = data, run, device
        self.unet = build_unet(recipe.network).to(device, memory_format=torch.channels_last)
        self.silent = silent_time_columns(self.unet, recipe.network.time_cutoff)
        silence(self.unet, self.silent)
        self.denoise = denoiser(self.unet, autocast=bf16)
        self.average = MovingAverage(self.unet)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=self.phase.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.generator = torch.Generator().manual_seed(0)
        self.images = self.steps = 0

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

    def step(self) -> float:
        """One batch; the mean loss before it."""
        phase, size = self.phase, self.phase.batch
        x0, labels = self.data.batch(size, self.generator, self.device)
        x0 = x0.contiguous(memory_format=torch.channels_last)
        sigma = draw_sigma(size, phase, self.generator)
        noise = torch.randn(x0.shape, generator=self.generator).to(self.device)
        if self.name == "pretrain":
            loss = denoising_loss(self.denoise, x0, labels, sigma.to(self.device), noise)
        else:
            t = sigma.to(self.device)
            r = nearer_sigma(t, stage_of(self.images, phase), phase.q)
            loss = consistency_loss(self.denoise, x0, labels, t, r, noise, phase.weighting == "balanced")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        mean = loss.mean()
        mean.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        silence(self.unet, self.silent)
        self.average.update(self.unet, phase.ema)
        self.steps += 1
        self.images += size
        return float(mean.detach())

    def save(self) -> None:
        """Averaged weights for use, and the whole state for going on."""
        save_weights(self.run / f"{self.name}.safetensors", self.average.weights, self.recipe.as_json())
        state = {
            "unet": self.unet.state_dict(),
            "average": self.average.weights,
            "average_steps": self.average.steps,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "images": self.images,
            "steps": self.steps,
        }
        save_state(self.run / f"{self.name}.state", state)

    def resume(self) -> bool:
        """Goes on from the last `save`, if there was one."""
        path = self.run / f"{self.name}.state"
        if not path.exists():
            return False
        state: dict[str, Any] = load_state(path, self.device)
        self.unet.load_state_dict(state["unet"])
        self.average.weights, self.average.steps = state["average"], state["average_steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.images, self.steps = state["images"], state["steps"]
        return True

    def sheet(self, per_class: int = 4) -> None:
        """Samples of the averaged network beside real pictures, for the eye."""
        eye = UNet2DModel.from_config(self.unet.config).to(self.device, memory_format=torch.channels_last)
        eye.load_state_dict(self.average.weights)
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


def train(trainer: Trainer, seconds: float, save_every: float, sheet_every: float) -> None:
    """Steps until the phase or the time is over, showing progress."""
    began = last_save = last_sheet = last_line = time.monotonic()
    losses: list[float] = []
    counted = trainer.images
    while trainer.images < trainer.phase.images and time.monotonic() - began < seconds:
        losses.append(trainer.step())
        now = time.monotonic()
        if now - last_line > 20:
            line = {
                "phase": trainer.name,
                "images": trainer.images,
                "loss": round(sum(losses) / len(losses), 4),
                "images_per_second": round((trainer.images - counted) / (now - last_line), 1),
                "learning_rate": round(trainer.learning_rate(), 7),
                "stage": stage_of(trainer.images, trainer.phase),
            }
            print(json.dumps(line), flush=True)
            with (trainer.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            losses, counted, last_line = [], trainer.images, now
        if now - last_save > save_every:
            trainer.save()
            last_save = now
        if now - last_sheet > sheet_every:
            trainer.sheet()
            last_sheet = now
    trainer.save()
    trainer.sheet()


def starting_weights(args: argparse.Namespace) -> dict[str, torch.Tensor] | None:
    """Where a new phase begins: a pipeline folder, the pre-trained average, or nothing."""
    if args.init:
        unet = UNet2DModel.from_pretrained(
            args.init, subfolder="unet", torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
        return dict(unet.state_dict())
    if args.phase == "tune":
        return load_weights(args.run / "pretrain.safetensors")
    return None


def changed(phase: PhaseSettings, args: argparse.Namespace) -> dict[str, Any]:
    """Settings given on the command line, by their names."""
    names = ("images", "batch", "learning_rate", "p_mean", "p_std", "stages", "first_stage", "weighting")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="training.train", description=__doc__.splitlines()[0])
    result.add_argument("--preset", choices=sorted(PRESETS), required=True)
    result.add_argument("--phase", choices=["pretrain", "tune", "scratch"], required=True)
    result.add_argument("--data", type=Path, required=True)
    result.add_argument("--run", type=Path, required=True)
    result.add_argument("--init", type=Path)
    result.add_argument("--seconds", type=float, default=float("inf"))
    result.add_argument("--save-every", type=float, default=120)
    result.add_argument("--sheet-every", type=float, default=300)
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None)
    result.add_argument("--threads", type=int)
    for name in ("images", "batch", "stages", "first_stage"):
        result.add_argument(f"--{name.replace('_', '-')}", type=int)
    for name in ("learning_rate", "p_mean", "p_std"):
        result.add_argument(f"--{name.replace('_', '-')}", type=float)
    result.add_argument("--weighting", choices=["gap", "balanced"])
    return result


def main(argv: list[str] | None = None) -> None:
    """Runs one phase."""
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    args.run.mkdir(parents=True, exist_ok=True)
    recipe = PRESETS[args.preset]
    recipe = recipe.with_phase(args.phase, **changed(recipe.phase(args.phase), args))
    bf16 = args.device.startswith("cuda") if args.bf16 is None else args.bf16
    trainer = Trainer(recipe, args.phase, Avatars(args.data, "train"), args.run, args.device, bf16)
    if not trainer.resume() and (weights := starting_weights(args)) is not None:
        trainer.start_from(weights)
    print(json.dumps({"phase": args.phase, "from": trainer.images, "to": trainer.phase.images}), flush=True)
    train(trainer, args.seconds, args.save_every, args.sheet_every)


if __name__ == "__main__":
    main()

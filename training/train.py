"""Trains one phase of a recipe; run it again to go on where it stopped.

    python -m training.train --preset 32 --phase pretrain --data training/data/32 --run training/runs/32
    python -m training.train --preset 32 --phase tune     --data training/data/32 --run training/runs/32
    ... and so on with the phases distill, polish, snap, adversarial, finish

Leaves `<phase>.safetensors` (the averaged weights, float32) and sample sheets in the run's folder. `--seconds`
ends a call early, `--images` changes the length of the phase, `--init` starts from a pipeline folder.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from pathlib import Path
from typing import Any, get_args

import torch

from service.engine.heap import keep_freed_memory
from training.adversarial import AdversarialTuner
from training.data import Avatars
from training.distiller import Distiller
from training.finisher import Finisher
from training.grower import Grower
from training.losses import stage_of
from training.network import unet_of
from training.paired import Paired
from training.polisher import Polisher
from training.recipe import PRESETS, Phase, PhaseSettings
from training.sharpener import Sharpener
from training.snapper import Snapper
from training.state import load_weights
from training.trainer import Trainer

ORDER: tuple[Phase, ...] = ("pretrain", "tune", "distill", "polish", "snap", "adversarial", "finish")
GROWTH: tuple[Phase, ...] = ("grow", "sharpen")
BY_PAIRS: tuple[Phase, ...] = ("pretrain", "pair")
KEEPERS: dict[str, type[Polisher]] = {
    "polish": Polisher,
    "snap": Snapper,
    "adversarial": AdversarialTuner,
    "finish": Finisher,
    "grow": Grower,
    "sharpen": Sharpener,
    "pair": Paired,
}  # phases that keep the weights they began with
FIRST_STEPS = 12  # by which a phase's rate is known
FRACTIONS = ("learning_rate", "ema", "p_mean", "p_std", "haze", "first_drift")  # settings that can be given


def fit(trainer: Trainer, seconds: float) -> None:
    """Sets the phase's length to what so many seconds from now allow, by the rate of its first steps."""
    began = time.monotonic()
    trainer.set_length(2**62)
    for _ in range(FIRST_STEPS):  # in the first ones things are set up
        float(trainer.step())
    counted, since = trainer.images, time.monotonic()
    for _ in range(FIRST_STEPS):
        loss = trainer.step()
    float(loss)  # a GPU is done only now
    now = time.monotonic()
    rate = (trainer.images - counted) / (now - since)
    trainer.set_length(trainer.images + int(rate * max(0.0, seconds - (now - began))))


def train(trainer: Trainer, seconds: float, save_every: float, sheet_every: float) -> None:
    """Steps until the phase or the time is over, showing progress."""
    began = last_save = last_sheet = last_line = time.monotonic()
    losses: list[torch.Tensor] = []
    counted = trainer.images
    while trainer.images < trainer.phase.images and time.monotonic() - began < seconds:
        losses.append(trainer.step())
        now = time.monotonic()
        if now - last_line > 20:
            line = {
                "phase": trainer.name,
                "images": trainer.images,
                "loss": round(float(torch.stack(losses).mean()), 4),
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
    """Where a new phase begins: a pipeline folder, the average of the phase before, or nothing."""
    if args.init:
        return dict(unet_of(args.init).state_dict())
    if args.phase == "grow":
        raise SystemExit("growth begins with a finished model of half the side: --init FOLDER")
    order = next((way for way in (ORDER, GROWTH, BY_PAIRS) if args.phase in way), ORDER)
    place = order.index(args.phase) if args.phase in order else 0
    return load_weights(args.run / f"{order[place - 1]}.safetensors") if place else None


def changed(phase: PhaseSettings, args: argparse.Namespace) -> dict[str, Any]:
    """Settings given on the command line, by their names."""
    names = ("images", "batch", "stages", "first_stage", "weighting", *FRACTIONS)
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="training.train", description=__doc__.splitlines()[0])
    result.add_argument("--preset", choices=sorted(PRESETS), required=True)
    result.add_argument("--phase", choices=list(get_args(Phase)), required=True)
    result.add_argument("--data", type=Path, required=True)
    result.add_argument("--run", type=Path, required=True)
    result.add_argument("--init", type=Path, help="a pipeline folder to start from")
    result.add_argument("--teacher", type=Path, help="distill: its weights; default: the run's pretrain.safetensors")
    result.add_argument("--seconds", type=float, default=float("inf"))
    result.add_argument("--within", type=float, help="seconds: the phase is as long as they allow")
    result.add_argument("--save-every", type=float, default=120)
    result.add_argument("--sheet-every", type=float, default=300)
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None)
    result.add_argument("--compile", action="store_true", help="the network compiled: needs a C++ compiler")
    result.add_argument("--graphs", action="store_true", help="steps replayed from a CUDA graph: needs a GPU")
    result.add_argument("--threads", type=int)
    result.add_argument("--seed", type=int, default=0, help="of pictures and noise; another one for a second run")
    for name in ("images", "batch", "stages", "first_stage"):
        result.add_argument(f"--{name.replace('_', '-')}", type=int)
    for name in FRACTIONS:
        result.add_argument(f"--{name.replace('_', '-')}", type=float)
    result.add_argument("--weighting", choices=["gap", "balanced"])
    return result


def main(argv: list[str] | None = None) -> None:
    """Runs one phase."""
    args = parser().parse_args(argv)
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = True  # not in matrix products: distances are among them
    torch.backends.cuda.enable_cudnn_sdp(False)  # its bfloat16 gradients were not numbers on an H200, PyTorch 2.11
    args.run.mkdir(parents=True, exist_ok=True)
    recipe = PRESETS[args.preset]
    if getattr(recipe, args.phase) is None:
        raise SystemExit(f"--preset {args.preset} has no phase {args.phase}")
    recipe = recipe.with_phase(args.phase, **changed(recipe.phase(args.phase), args))
    bf16 = args.device.startswith("cuda") if args.bf16 is None else args.bf16
    data = Avatars(args.data, "train")
    if args.phase == "distill":
        teacher = load_weights(args.teacher or args.run / "pretrain.safetensors")
        trainer: Trainer = Distiller(recipe, data, args.run, args.device, bf16, args.compile, teacher)
    elif args.phase in KEEPERS:
        trainer = KEEPERS[args.phase](recipe, data, args.run, args.device, bf16, args.compile)
    else:
        trainer = Trainer(recipe, args.phase, data, args.run, args.device, bf16, args.compile)
    # phases and repeated ones see other pictures and other noise
    trainer.generator.manual_seed(zlib.crc32(f"{args.phase} {args.seed}".encode()))
    if args.graphs:
        if not trainer.replayable or not args.device.startswith("cuda"):
            raise SystemExit("--graphs needs a GPU, and does not have distill, snap and adversarial")
        trainer.replay()
    if not trainer.resume() and (weights := starting_weights(args)) is not None:
        trainer.start_from(weights)
    if args.images and trainer.fitted is not None:
        trainer.set_length(args.images)
    if args.within and trainer.fitted is None:
        fit(trainer, args.within)
    print(json.dumps({"phase": args.phase, "from": trainer.images, "to": trainer.phase.images}), flush=True)
    train(trainer, args.seconds, args.save_every, args.sheet_every)


if __name__ == "__main__":
    main()

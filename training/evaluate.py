"""Measures a consistency model against real avatars, and writes the figures and a sheet.

    python -m training.evaluate --pipeline out/avatars-32 --data training/data/32 --out training/results/avatars-32.json

Frechet distances are in EfficientNet-Lite0's features (FD-EfficientNetLite0; not FID, and not to be compared with
it). Every figure uses the same number of pictures, spread evenly over the classes; the search for the second
step may use fewer and says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

from service.engine.heap import keep_freed_memory
from training.judge import Judge
from training.network import Denoiser, build_unet, denoiser, denoiser_of, unet_of
from training.recipe import CLASSES, PRESETS
from training.sampling import SCHEDULE, consistency_sample, heun_sample, second_steps, to_uint8
from training.served import ServedNetwork
from training.sheets import save_sheet
from training.state import load_weights

FIRST_SEED = 10_000_000
SEARCHED = range(18, 27)  # grid indices of the second step, sigma 3.5 to 0.47

Sampler = Callable[[torch.Tensor, range], torch.Tensor]


def even_labels(n: int) -> np.ndarray:
    """`n` class labels, class by class."""
    if n % len(CLASSES):
        raise ValueError(f"n must be a multiple of {len(CLASSES)}")
    return np.repeat(np.arange(len(CLASSES)), n // len(CLASSES))


def make(sampler: Sampler, labels: np.ndarray, device: str, batch: int) -> np.ndarray:
    """uint8 pictures `[N, H, W, 3]`; picture i has seed FIRST_SEED + i."""
    parts = []
    for i in range(0, len(labels), batch):
        rows = torch.from_numpy(labels[i : i + batch]).to(device)
        parts.append(to_uint8(sampler(rows, range(FIRST_SEED + i, FIRST_SEED + i + len(rows)))))
    return np.concatenate(parts)


def consistency_sampler(denoise: Denoiser, size: int, timesteps: list[int]) -> Sampler:
    """Consistency steps at diffusers' `timesteps`."""
    return lambda labels, seeds: consistency_sample(denoise, labels, seeds, size, timesteps)


def search_second_step(
    denoise: Denoiser, judge: Judge, labels: np.ndarray, size: int, device: str, batch: int
) -> dict[int, float]:
    """FD of `[index, 0]` for every searched index."""
    parts: dict[int, list[np.ndarray]] = {index: [] for index in SEARCHED}
    for i in range(0, len(labels), batch):
        rows = torch.from_numpy(labels[i : i + batch]).to(device)
        seeds = range(FIRST_SEED + i, FIRST_SEED + i + len(rows))
        for index, images in second_steps(denoise, rows, seeds, size, SEARCHED).items():
            parts[index].append(to_uint8(images))
    found = {}
    for index, images in parts.items():
        found[index] = judge.distance(np.concatenate(images))
        print(json.dumps({"timesteps": [index, 0], "fd": round(found[index], 1)}), flush=True)
    return found


def denoiser_on(device: str, unet: UNet2DModel, dtype: torch.dtype | None) -> Denoiser:
    """The network's denoiser, float32; with a `dtype`, run in it as the service does on a CPU."""
    if dtype is not None:
        return denoiser_of(ServedNetwork(unet, dtype))
    return denoiser(unet.eval().to(device, memory_format=torch.channels_last))


def load_pipeline(folder: Path, device: str, dtype: torch.dtype | None) -> tuple[Denoiser, int]:
    """The denoiser of a pipeline folder, and its picture size."""
    unet = unet_of(folder)
    return denoiser_on(device, unet, dtype), int(unet.config["sample_size"])


def load_teacher(path: Path, preset: str, device: str, dtype: torch.dtype | None) -> Denoiser:
    """The pre-trained diffusion model of a run."""
    unet = build_unet(PRESETS[preset].network)
    unet.load_state_dict(load_weights(path))
    return denoiser_on(device, unet, dtype)


def load_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Pictures and labels as `onestep generate --npz` and the ImageNet suites write them: arr_0, arr_1."""
    with np.load(path, allow_pickle=False) as stored:
        return stored["arr_0"], stored.get("arr_1")


def columns_of(images: np.ndarray, per_class: int) -> np.ndarray:
    """The first pictures of each class for a sheet: `[classes, per_class, H, W, 3]`."""
    return images.reshape(len(CLASSES), -1, *images.shape[1:])[:, :per_class]


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """All figures that the arguments ask for."""
    began = time.monotonic()
    labels = even_labels(args.n)
    dtype = getattr(torch, args.served) if args.served else None
    judge = Judge(args.data, args.n, args.cache, args.device, args.epochs)
    result: dict[str, Any] = {
        "n": args.n,
        "metric": "FD-EfficientNetLite0",
        "first_seed": FIRST_SEED,
        "network": f"as served on a CPU, {args.served}" if args.served else "float32",
        "real": judge.floor(),
        "rows": {},
    }
    groups = [columns_of(judge.reference_images, args.per_class)]

    def add(name: str, images: np.ndarray, row_labels: np.ndarray | None) -> None:
        result["rows"][name] = judge.figures(images, row_labels)
        print(json.dumps({name: result["rows"][name]}), flush=True)

    for path in args.npz:
        images, row_labels = load_npz(path)
        add(path.stem, images, row_labels)
    if args.pipeline:
        denoise, size = load_pipeline(args.pipeline, args.device, dtype)
        runs = {f"{k} step{'s' * (k > 1)}": SCHEDULE.evenly_spaced(k) for k in args.steps}
        if args.search:
            few = even_labels(args.search)
            found = search_second_step(denoise, judge, few, size, args.device, args.batch)
            best = min(found, key=lambda index: found[index])
            result["search"] = {"n": args.search, "fd": {str(k): round(v, 1) for k, v in found.items()}}
            runs[f"best two steps [{best}, 0]"] = [best, 0]
        for name, timesteps in runs.items():
            images = make(consistency_sampler(denoise, size, timesteps), labels, args.device, args.batch)
            add(name, images, labels)
            groups.append(columns_of(images, args.per_class))
    if args.teacher:
        denoise, size = load_teacher(args.teacher, args.preset, args.device, dtype), judge.train.image_size

        def heun(rows: torch.Tensor, seeds: range) -> torch.Tensor:
            return heun_sample(denoise, rows, seeds, size)

        images = make(heun, labels, args.device, args.batch)
        add("teacher, 18-step Heun", images, labels)
        groups.append(columns_of(images, args.per_class))
    if args.sheet:
        save_sheet(args.sheet, groups, args.zoom)
    result["seconds"] = round(time.monotonic() - began)
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="training.evaluate", description=__doc__.splitlines()[0])
    result.add_argument("--data", type=Path, required=True)
    result.add_argument("--out", type=Path, required=True)
    result.add_argument("--pipeline", type=Path, help="a ConsistencyModelPipeline folder")
    result.add_argument("--npz", type=Path, nargs="*", default=[], help="pictures made elsewhere: arr_0, arr_1")
    result.add_argument("--teacher", type=Path, help="pretrain.safetensors of a run")
    result.add_argument("--preset", choices=sorted(PRESETS), default="32", help="network of the teacher")
    result.add_argument("--n", type=int, default=1000, help="pictures for every figure")
    result.add_argument("--steps", type=int, nargs="*", default=[1, 2, 4])
    result.add_argument("--search", type=int, default=0, help="pictures for each index of the two-step search")
    result.add_argument("--epochs", type=int, default=1, help="passes of the classifier over the real pictures")
    result.add_argument("--cache", type=Path, default=Path("training/runs/cache"))
    result.add_argument("--sheet", type=Path)
    result.add_argument("--per-class", type=int, default=4)
    result.add_argument("--zoom", type=int, default=2)
    result.add_argument("--batch", type=int, default=100)
    result.add_argument(
        "--served", choices=("float32", "bfloat16"), help="run networks in this type as the service does on a CPU"
    )
    result.add_argument("--device", help="default: the GPU, if there is one and nothing is --served")
    return result


def main(argv: list[str] | None = None) -> None:
    """Evaluates and writes the figures as JSON."""
    args = parser().parse_args(argv)
    if args.served and args.device not in (None, "cpu"):
        raise SystemExit("--served runs networks on the CPU")
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() and not args.served else "cpu"
    keep_freed_memory()
    result = evaluate(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

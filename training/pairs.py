"""Pairs of noise and the picture that a diffusion model makes of it: what one step should make of the same noise.

    python -m training.pairs --teacher training/runs/64/pretrain.safetensors --preset 64-grown --count 40000 \
        --out training/runs/64/pairs.safetensors

The pictures are as varied as the diffusion model's, whose every noise leads to one of them (Kang et al. 2024,
"Distilling Diffusion Models into Conditional GANs"). Only pictures and classes are kept: the noise of pair i is that of
seed FIRST_SEED + i.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.data import to_signed
from training.network import Denoiser, build_unet, denoiser
from training.recipe import CLASSES, PRESETS
from training.sampling import draw, generators, heun_sample, to_uint8
from training.state import load_weights

FIRST_SEED = 30_000_000  # evaluation's are others
AT_ONCE = 500  # pairs whose pictures are cleaned together


class Pairs:
    """Noise `[N, 3, S, S]` of standard deviation 1, in bfloat16, its pictures, and their class labels `[N]`."""

    def __init__(self, path: Path, device: str, cleaned: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Pictures are kept as `cleaned` makes them of pictures `[B, 3, S, S]` in [-1, 1] and labels `[B]`."""
        stored = load_weights(path)
        count, size = stored["pictures"].shape[:2]
        self.labels = stored["labels"].to(device)
        pictures, noise = [], []
        for first in range(0, count, AT_ONCE):
            some = slice(first, min(first + AT_ONCE, count))
            signed = to_signed(stored["pictures"][some].to(device))
            pictures.append(torch.from_numpy(to_uint8(cleaned(signed, self.labels[some]))))
            seeds = range(FIRST_SEED + some.start, FIRST_SEED + some.stop)
            noise.append(draw(generators(seeds), size, "cpu").bfloat16())
        self.pictures, self.noise = torch.cat(pictures).to(device), torch.cat(noise).to(device)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Of random pairs: noise and pictures in [-1, 1], float32 `[B, 3, S, S]`, and class labels `[B]`."""
        rows = torch.randint(len(self.labels), (size,), generator=generator, device=generator.device)
        return self.noise[rows].float(), to_signed(self.pictures[rows]), self.labels[rows]


def make_pairs(denoise: Denoiser, count: int, size: int, device: str, batch: int, seconds: float) -> dict[str, Tensor]:
    """Pictures uint8 `[N, S, S, 3]` of all classes in turn, and labels: N is `count`, or what `seconds` allow."""
    began = said = time.monotonic()
    pictures: list[Tensor] = []
    for first in range(0, count, batch):
        last = min(first + batch, count)
        labels = (torch.arange(first, last) % len(CLASSES)).to(device)
        made = heun_sample(denoise, labels, range(FIRST_SEED + first, FIRST_SEED + last), size)
        pictures.append(torch.from_numpy(to_uint8(made)))
        now = time.monotonic()
        if now - said > 20:
            said = now
            print(json.dumps({"pairs": last, "seconds": round(now - began)}), flush=True)
        if now - began > seconds:
            break
    joined = torch.cat(pictures)
    return {"pictures": joined, "labels": torch.arange(len(joined)) % len(CLASSES)}


def main(argv: list[str] | None = None) -> None:
    """Makes them with the averaged weights of a pre-trained model."""
    parser = argparse.ArgumentParser(prog="training.pairs", description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True, help="pretrain.safetensors of a run")
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="ends early")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=None)
    args = parser.parse_args(argv)
    bf16 = args.device.startswith("cuda") if args.bf16 is None else args.bf16
    network = PRESETS[args.preset].network
    unet = build_unet(network)
    unet.load_state_dict(load_weights(args.teacher))
    denoise = denoiser(unet.eval().to(args.device, memory_format=torch.channels_last), bf16)
    made = make_pairs(denoise, args.count, network.image_size, args.device, args.batch, args.seconds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(made, args.out)
    print(json.dumps({"pairs": len(made["labels"])}), flush=True)


if __name__ == "__main__":
    main()

"""Pictures of twice the side out of a smaller model's, with the outlines that avatars have at that side.

    python -m training.enlarger --smaller service/models/bundled/avatars-32 --data training/data/64 \
        --out training/runs/64-grown/enlarger.safetensors

A small convolutional network learns it from avatars and their halves. Some of the halves have been through the smaller
model, with noise and back, so that what a model makes is mended too, not only what a renderer does.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.engine.heap import keep_freed_memory
from training.data import Avatars
from training.network import Denoiser, denoiser, unet_of
from training.polisher import distances
from training.state import load_weights, save_weights

WIDTH, BLOCKS = 64, 5
MADE = 6000  # pictures that go through the smaller model; as many as any others in a batch
NOISE = (0.1, 0.8)  # least and most on those: under more, the model would make something else of them
BATCH, LEARNING_RATE, WARM_UP = 32, 1e-3, 50  # of pairs; steps


class Block(nn.Module):
    """Maps `[B, C, H, W]` and what two convolutions add to them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.second(functional.silu(self.first(functional.silu(x))))
        return x + h


class Enlarger(nn.Module):
    """Pictures `[B, 3, S, S]` in [-1, 1] to `[B, 3, 2S, 2S]`. Begins with every pixel four times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.last = nn.Conv2d(WIDTH, 12, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        added = functional.pixel_shuffle(self.last(self.blocks(self.first(pictures))), 2)
        return functional.interpolate(pictures, scale_factor=2) + added

    @staticmethod
    def load(path: Path, device: str) -> Enlarger:
        """What `main` saved, for use."""
        enlarger = Enlarger()
        enlarger.load_state_dict(load_weights(path))
        return enlarger.requires_grad_(False).to(device, memory_format=torch.channels_last)


@torch.no_grad()
def made_by(smaller: Denoiser, data: Avatars, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Halves of avatars after noise and a step of the smaller model, `[N, 3, S, S]`; the avatars, `[N, 3, 2S, 2S]`."""
    made, avatars = [], []
    for _ in range(0, count, BATCH):
        pictures, labels = data.batch(BATCH, generator)
        least, most = NOISE
        sigma = least * (most / least) ** torch.rand(BATCH, generator=generator, device=generator.device)
        halves = functional.avg_pool2d(pictures, 2)
        noise = torch.randn(halves.shape, generator=generator, device=generator.device)
        noisy = (halves + sigma.view(-1, 1, 1, 1) * noise).contiguous(memory_format=torch.channels_last)
        made.append(smaller(noisy, sigma, labels).clamp(-1, 1))
        avatars.append(pictures)
    return torch.cat(made), torch.cat(avatars)


def main(argv: list[str] | None = None) -> None:
    """Trains one and saves it."""
    parser = argparse.ArgumentParser(prog="training.enlarger", description=__doc__.splitlines()[0])
    parser.add_argument("--smaller", type=Path, required=True, help="pipeline folder of half the side")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--made", type=int, default=MADE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args(argv)
    keep_freed_memory()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator(args.device).manual_seed(0)
    data = Avatars(args.data, "train")
    smaller = denoiser(unet_of(args.smaller).eval().to(args.device, memory_format=torch.channels_last), args.bf16)
    made, avatars = made_by(smaller, data, args.made, generator)
    enlarger = Enlarger().to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(enlarger.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    steps = args.images // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=min(0.3, WARM_UP / steps)
    )
    last = time.monotonic()
    for step in range(steps):
        some = torch.randint(len(made), (BATCH // 2,), generator=generator, device=generator.device)
        plain = data.batch(BATCH - len(some), generator)[0]
        target = torch.cat([avatars[some], plain])
        halves = torch.cat([made[some], functional.avg_pool2d(plain, 2)]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.bf16):
            enlarged = enlarger(halves)
        loss = distances(enlarged.float(), target).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(enlarger.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if time.monotonic() - last > 20 or step == steps - 1:
            last = time.monotonic()
            print(json.dumps({"images": (step + 1) * BATCH, "loss": round(float(loss.detach()), 4)}), flush=True)
    save_weights(args.out, dict(enlarger.state_dict()), {})


if __name__ == "__main__":
    main()

"""What redraws pictures at twice the side: how it begins, what it learns from, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.plain_avatars import plain_avatars
from tests.tiny import tiny_model
from training import enlarger
from training.data import Avatars
from training.enlarger import NOISE, Enlarger, made_by
from training.recipe import CLASSES


def test_it_begins_with_every_pixel_four_times() -> None:
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(Enlarger()(pictures), functional.interpolate(pictures, scale_factor=2))


def test_some_halves_have_been_through_the_smaller_model(tmp_path: Path) -> None:
    """With noise on them, at the level that it is told; each beside its avatar."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def smaller(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        seen.append((x, sigma, labels))
        return 3 * x

    halves, avatars = made_by(smaller, plain_avatars(tmp_path), 64, torch.Generator().manual_seed(0))
    assert avatars.shape == (64, 3, 16, 16)
    x, sigma, _ = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert torch.equal(halves, (3 * x).clamp(-1, 1))
    least, most = NOISE
    assert least <= sigma.min() < sigma.max() <= most
    noise = (x - functional.avg_pool2d(avatars, 2)) / sigma.view(-1, 1, 1, 1)
    assert abs(float(noise.std()) - 1) < 0.05


def edged_avatars(folder: Path) -> None:
    """Of white from some odd column on: half of a column of the halves."""
    for name in CLASSES:
        pictures = np.zeros((6, 16, 16, 3), np.uint8)
        for i in range(6):
            pictures[i, :, 3 + 2 * i :] = 255
        np.save(folder / f"train-{name}-0000000.npy", pictures)


def test_edges_become_sharp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Edges within a pixel of the halves are found again to within half of what was off."""
    monkeypatch.setattr(enlarger, "WIDTH", 16)
    monkeypatch.setattr(enlarger, "BLOCKS", 1)
    edged_avatars(tmp_path)
    model = tiny_model(tmp_path / "tiny", "plain", sample_size=8)
    out = tmp_path / "run" / "enlarger.safetensors"  # the first program that writes into a run
    arguments = ["--smaller", str(model), "--data", str(tmp_path), "--out", str(out), "--device", "cpu", "--made", "32"]
    enlarger.main([*arguments, "--images", "6400"])
    found = Enlarger.load(out, "cpu")
    avatars = Avatars(tmp_path, "train").batch(32, torch.Generator().manual_seed(1))[0]
    halves = functional.avg_pool2d(avatars, 2)
    off = (found(halves) - avatars).abs().mean()
    assert off < 0.5 * (functional.interpolate(halves, scale_factor=2) - avatars).abs().mean()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 6400

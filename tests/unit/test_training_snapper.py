"""The last touch: which avatar a sample is drawn to, that all kinds are chosen, and that the model learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.grainy_polisher import grainy_polisher
from training.balance import balancing_prices, squared_distances
from training.data import Attribute
from training.network import SIGMA_MAX
from training.snapper import AHEAD, WAY, Snapper
from training.state import load_weights

pytestmark = pytest.mark.slow  # it trains


def test_distances_are_mean_squares() -> None:
    random = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 4, 4, 3), generator=random).to(torch.uint8)
    pool = torch.randint(0, 256, (5, 4, 4, 3), generator=random).to(torch.uint8)
    direct = (pictures[:, None].float() - pool[None].float()).square().flatten(2).mean(2)
    torch.testing.assert_close(squared_distances(pictures, pool), direct, rtol=1e-5, atol=1e-2)


def test_prices_let_every_value_be_chosen() -> None:
    """Samples that all lie nearer to one kind of avatar: with prices, the others are chosen as often as they exist."""
    random = torch.Generator().manual_seed(0)
    kinds = np.arange(400) % 4
    by_kind = 400 * torch.rand(800, 4, generator=random) + torch.tensor([0.0, 300.0, 300.0, 300.0])
    distances = by_kind[:, kinds] + 100 * torch.rand(800, 400, generator=random)
    attributes = {"hair": Attribute(["bald", "short", "long", "curly"], kinds)}
    before = np.bincount(kinds[distances.argmin(1).numpy()], minlength=4) / 800
    assert before[0] > 0.8
    prices = balancing_prices(distances, attributes)
    after = np.bincount(kinds[(distances - prices).argmin(1).numpy()], minlength=4) / 800
    np.testing.assert_allclose(after, 0.25, atol=0.05)


def test_targets_are_avatars_and_the_picture_itself_under_little_noise(tmp_path: Path) -> None:
    """An untrained network scales what it sees a little, so that a similar colour may be nearer now and then."""
    trainer = grainy_polisher(Snapper, tmp_path)
    batches = trainer.look_ahead()
    assert len(batches) == AHEAD // 16
    x, sigma, labels, target = (torch.cat([batch[i] for batch in batches]) for i in range(4))
    for label in range(10):
        pool = torch.from_numpy(trainer.data.images[label])
        nearest = squared_distances(target[labels == label], pool).min(1).values
        torch.testing.assert_close(nearest, torch.zeros_like(nearest), atol=0.1, rtol=0)
    quiet = sigma < 0.3
    assert int(quiet.sum()) > 10
    colours = (x[quiet].mean((2, 3)) + 1) * 127.5
    same = (target[quiet, 0, 0].float() - colours).abs().amax(1) < 12
    assert float(same.float().mean()) > 0.9


@pytest.mark.slow
def test_what_is_saved_lies_between_before_and_after(tmp_path: Path) -> None:
    trainer = grainy_polisher(Snapper, tmp_path)
    for _ in range(3):
        trainer.step()
    trainer.save()
    saved = load_weights(tmp_path / "snap.safetensors")["conv_in.weight"]
    before, after = trainer.before.conv_in.weight, trainer.average.weights["conv_in.weight"]
    assert float((after - before).abs().max()) > 1e-4
    torch.testing.assert_close(saved, before + WAY * (after - before))


@pytest.mark.slow
def test_the_model_learns_what_it_should_make(tmp_path: Path) -> None:
    """In forty steps the distance falls by a third, and what it makes of noise is nearer to some avatar."""
    trainer = grainy_polisher(Snapper, tmp_path)

    def nearest() -> float:
        labels = torch.arange(10).repeat_interleave(8)
        x = SIGMA_MAX * torch.randn(80, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        made = trainer.denoise(x, torch.full((80,), SIGMA_MAX), labels)
        pictures = ((made / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).round().to(torch.uint8)
        pools = [torch.from_numpy(images) for images in trainer.data.images]
        rows = [squared_distances(p, pool).min(1).values for p, pool in zip(pictures.split(8), pools, strict=True)]
        return float(torch.cat(rows).mean())

    with torch.no_grad():
        before = nearest()
        with torch.enable_grad():
            losses = [trainer.step() for _ in range(40)]
        assert sum(losses[-5:]) < 0.67 * sum(losses[:5])
        assert nearest() < 0.5 * before

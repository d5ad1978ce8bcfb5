"""One step from noise to a diffusion model's picture of it: which pairs, which starts, and that it learns them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.grainy_polisher import grainy_polisher
from tests.plain_avatars import plain_avatars
from training import pairs, train
from training.network import SIGMA_MAX, build_unet, denoiser
from training.paired import NOISED, OWN, Paired
from training.pairs import FIRST_SEED, Pairs
from training.recipe import CLASSES, PRESETS
from training.sampling import draw, generators, heun_sample
from training.starts import MUCH
from training.state import load_weights, save_weights
from training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains

SIZE = PRESETS["smoke"].network.image_size


def flat_denoise(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    """A class is a grey."""
    return (labels / 10 - 0.5).view(-1, 1, 1, 1).expand_as(x)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with forty pairs of an untrained diffusion model."""
    torch.manual_seed(0)
    save_weights(tmp_path / "pretrain.safetensors", dict(build_unet(PRESETS["smoke"].network).state_dict()), {})
    arguments = ["--teacher", str(tmp_path / "pretrain.safetensors"), "--preset", "smoke", "--count", "40"]
    pairs.main([*arguments, "--batch", "16", "--out", str(tmp_path / "pairs.safetensors"), "--device", "cpu"])
    return tmp_path


def test_pictures_are_what_the_noise_of_their_seeds_leads_to(run: Path) -> None:
    """Of all classes in turn, whatever the batches were."""
    found = Pairs(run / "pairs.safetensors", "cpu", lambda pictures, labels: pictures)
    assert found.labels.tolist() == [*range(len(CLASSES))] * 4
    assert torch.equal(found.noise[17:18], draw(generators([FIRST_SEED + 17]), SIZE, "cpu").bfloat16())
    unet = build_unet(PRESETS["smoke"].network)
    unet.load_state_dict(load_weights(run / "pretrain.safetensors"))
    made = heun_sample(denoiser(unet.eval()), torch.tensor([7]), [FIRST_SEED + 17], SIZE)
    stored = found.pictures[17].permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(made[0], stored.float(), rtol=0, atol=1 / 127)


def test_they_end_with_the_time() -> None:
    made = pairs.make_pairs(flat_denoise, 1000, 8, "cpu", batch=20, seconds=0.0)
    assert len(made["pictures"]) == len(made["labels"]) == 20
    greys = np.asarray(made["pictures"][:10, 0, 0, 0]).tolist()
    assert greys == sorted(greys)


def test_starts_are_own_pictures_then_avatars_then_pairs(run: Path) -> None:
    """Each but the pairs its own target; the noise of pairs is theirs, at the most or at much of it."""
    trainer = grainy_polisher(Paired, run)
    trainer.step()
    assert trainer.own is not None
    own, noised = int(16 * OWN), int(16 * NOISED)
    pictures, kept, _ = (each.clone() for each in trainer.own)
    x, sigma, labels, target = trainer.examples()
    assert len(pictures) == own
    assert torch.equal(labels[:own], kept)
    assert torch.equal(target[:own], trainer.cleaned(pictures, kept))
    assert bool((sigma[:noised] <= MUCH).all())
    assert bool((sigma[noised:] >= MUCH).all())
    assert 0 < int((sigma == SIGMA_MAX).sum()) < 16 - noised
    for row in range(noised, 16):
        noise = x[row] / sigma[row]
        which = (trainer.pairs.noise.float() - noise).abs().mean((1, 2, 3)).argmin()
        torch.testing.assert_close(noise, trainer.pairs.noise[which].float())
        assert labels[row] == trainer.pairs.labels[which]
        expected = trainer.pairs.pictures[which].permute(2, 0, 1).float() / 127.5 - 1
        torch.testing.assert_close(target[row], expected)


@pytest.mark.slow
def test_one_step_comes_nearer_to_its_pairs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By targets alone."""
    monkeypatch.setattr(Paired, "critic_pull", 0.0)
    monkeypatch.setattr(Paired, "drift_pull", 0.0)
    trainer = grainy_polisher(Paired, run)

    def off() -> float:
        noise, target, labels = trainer.pairs.batch(40, torch.Generator().manual_seed(3))
        with torch.no_grad():
            made = trainer.denoise(SIGMA_MAX * noise, torch.full((40,), SIGMA_MAX), labels)
        return float((made - target).abs().mean())

    before = off()
    for _ in range(60):
        trainer.step()
    assert off() < 0.7 * before


def test_a_phase_can_be_as_long_as_some_seconds_allow(tmp_path: Path) -> None:
    """By the rate of its first steps; the learning rate ends with it."""
    trainer = Trainer(PRESETS["smoke"], "pretrain", plain_avatars(tmp_path), tmp_path, "cpu", bf16=False)
    train.fit(trainer, 0.0)
    assert trainer.images == trainer.phase.images == trainer.recipe.pretrain.images == 2 * train.FIRST_STEPS * 32
    assert trainer.learning_rate() == pytest.approx(PRESETS["smoke"].pretrain.learning_rate * 0.05)
    train.fit(trainer, 1e5)
    assert trainer.phase.images > 100 * trainer.images

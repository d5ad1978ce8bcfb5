"""The phase with a critic of finished pictures: what targets say beside it, and that the model learns from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.grainy_polisher import grainy_polisher
from training import adversarial, backgrounds, snapper
from training.adversarial import OWN_HELD, OWN_NOISE, AdversarialTuner, distance_to_target
from training.network import SIGMA_MAX
from training.sampling import to_uint8

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(autouse=True)
def little_to_do_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures by which prices are found, and targets are looked for."""
    monkeypatch.setattr(snapper, "PRICED_BY", 64)
    monkeypatch.setattr(snapper, "AHEAD", 64)


def test_targets_say_details_only_where_noise_is_low() -> None:
    """Values that trade places within a square cost much under little noise, next to nothing under much; colours do."""
    random = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 32, 32, generator=random) * 2 - 1
    shuffled = target.view(1, 3, 4, 8, 4, 8).flip(3, 5).reshape(target.shape)
    lighter = target + 0.3
    low, high = torch.tensor([0.2]), torch.tensor([SIGMA_MAX])

    def cost(made: torch.Tensor, sigma: torch.Tensor, held: float = 1.0) -> float:
        return float(distance_to_target(made, target, sigma, torch.tensor([held])))

    assert cost(target, low) == 0
    assert cost(shuffled, high) < 0.02 * cost(shuffled, low)
    assert cost(lighter, high) > 4 * cost(shuffled, high)
    assert cost(shuffled, low, 0.2) == pytest.approx(0.2 * cost(shuffled, low), rel=1e-3)


@pytest.mark.slow
def test_second_steps_may_better_what_they_begin_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only own pictures count less, and only where there are any."""
    seen: list[torch.Tensor] = []

    def noting(made: torch.Tensor, target: torch.Tensor, sigma: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        seen.append(held)
        return distance_to_target(made, target, sigma, held)

    monkeypatch.setattr(adversarial, "distance_to_target", noting)
    trainer = grainy_polisher(AdversarialTuner, tmp_path)
    trainer.step()
    trainer.step()
    assert seen[0].tolist() == [1.0] * 16
    assert seen[1].tolist() == pytest.approx([OWN_HELD] * 6 + [1.0] * 10)


def test_many_starts_are_what_the_step_before_made(tmp_path: Path) -> None:
    """Rows 0 to 5 of 16 are its pictures with noise, theirs are the targets and classes; other rows are as before."""
    trainer = grainy_polisher(AdversarialTuner, tmp_path)
    assert trainer.own is None
    trainer.step()
    assert trainer.own is not None
    pictures, classes = trainer.own
    x, sigma, labels, target = trainer.examples()
    assert pictures.shape == (6, 3, 16, 16)
    assert torch.equal(target[:6], pictures)
    assert torch.equal(labels[:6], classes)
    assert all(OWN_NOISE[0] <= s <= OWN_NOISE[1] for s in sigma[:6].tolist())
    noise = (x[:6] - pictures) / sigma[:6].view(-1, 1, 1, 1)
    assert abs(float(noise.std()) - 1) < 0.1
    avatars = {picture.tobytes() for images in trainer.data.images for picture in images}
    assert all(to_uint8(row[None])[0].tobytes() in avatars for row in target[6:])
    assert not any(to_uint8(row[None])[0].tobytes() in avatars for row in target[:6])


@pytest.mark.slow
def test_an_uneven_background_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the same batch is higher with that distance, and is not where no background is found."""

    def loss(weight: float) -> float:
        monkeypatch.setattr(adversarial, "EVEN", weight)
        return float(grainy_polisher(AdversarialTuner, tmp_path).loss().detach())

    assert loss(50.0) > loss(0.0) + 0.01
    monkeypatch.setattr(backgrounds, "STEP", 0.0)
    assert loss(50.0) == loss(0.0)


@pytest.mark.slow
def test_the_model_learns_what_the_critic_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly grey pictures, avatars of all colours: with nothing but the critic, pictures get colours of their own."""
    monkeypatch.setattr(adversarial, "COLOURS", 0.0)
    monkeypatch.setattr(adversarial, "VALUES", 0.0)
    monkeypatch.setattr(adversarial, "EVEN", 0.0)
    trainer = grainy_polisher(AdversarialTuner, tmp_path)
    trainer.phase = replace(trainer.phase, learning_rate=3e-4)

    def variety() -> float:
        x = SIGMA_MAX * torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            made = trainer.denoise(x, torch.full((40,), SIGMA_MAX), torch.arange(40) % 10)
        return float(made.mean((2, 3)).std())

    assert variety() < 0.1
    for _ in range(40):
        trainer.step()
    assert variety() > 0.25

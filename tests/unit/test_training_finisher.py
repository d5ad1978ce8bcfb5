"""The end of a recipe: where it starts, what it aims at, and whose critic it goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.grainy_polisher import grainy_polisher
from training import backgrounds, finisher, snapper, starts
from training.adversarial import AdversarialTuner
from training.finisher import FIRST, NEITHER, OWN_FROM, SECOND, Finisher, drifting
from training.network import SIGMA_MAX
from training.starts import OWN_TO


def test_many_starts_are_what_the_step_before_made(tmp_path: Path) -> None:
    """Rows 0 to 8 of 16: its pictures with noise, to be made of themselves, cleaned; others are as in the polish."""
    trainer = grainy_polisher(Finisher, tmp_path)
    assert trainer.own is None
    trainer.step()
    assert trainer.own is not None
    pictures, classes = trainer.own
    x, sigma, labels, target = trainer.examples()
    assert pictures.shape == (9, 3, 16, 16)
    assert torch.equal(labels[:9], classes)
    assert all(OWN_FROM <= s <= OWN_TO for s in sigma[:9].tolist())
    assert (sigma[10:] == SIGMA_MAX).all()
    noise = (x[:9] - pictures) / sigma[:9].view(-1, 1, 1, 1)
    assert abs(float(noise.std()) - 1) < 0.1
    assert torch.equal(target[:9], trainer.cleaned(pictures, classes))
    with torch.no_grad():
        made = trainer.estimate_before(x[9:], sigma[9:], labels[9:])
    assert torch.equal(target[9:], trainer.cleaned(made, labels[9:]))


def test_second_steps_begin_at_one_step_samples_first(tmp_path: Path) -> None:
    """Rows 10 to 15 of 16 are of noise alone: all are kept, with three of the others, each with its class."""
    trainer = grainy_polisher(Finisher, tmp_path)
    made = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 16, 16) / 16
    sigma = torch.tensor([1.0] * 10 + [SIGMA_MAX] * 6)
    pictures, classes = trainer.kept(made, sigma, torch.arange(16))
    assert torch.equal(pictures[:, 0, 0, 0], classes / 16)
    assert set(range(10, 16)) < set(classes.tolist())
    assert len(set(classes.tolist())) == 9


@pytest.mark.slow
def test_own_pictures_count_less_under_much_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With targets alone, and every distance 1: what they add to the loss falls with sigma squared."""
    monkeypatch.setattr(finisher, "PULL", 0.0)
    monkeypatch.setattr(finisher, "distances", lambda made, _: made.flatten(1).sum(1) * 0 + 1)

    def cost(noise: float) -> float:
        monkeypatch.setattr(finisher, "OWN_FROM", noise)
        monkeypatch.setattr(starts, "OWN_TO", noise)
        trainer = grainy_polisher(Finisher, tmp_path)
        trainer.own = torch.zeros(15, 3, 16, 16), torch.zeros(15, dtype=torch.int64)
        return (16 * float(trainer.loss().detach()) - 1) / 15  # the last row is noise alone

    assert cost(0.5) == pytest.approx(2**0.25 / 1.25, rel=1e-3)
    assert cost(5.0) == pytest.approx(1.01**0.25 / 26, rel=1e-3)


@pytest.mark.slow
def test_targets_have_one_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These pictures are all background: targets are of one colour, and would not be without the levelling."""

    def plain_targets() -> int:
        target = grainy_polisher(Finisher, tmp_path).examples()[3]
        return int((target == target[:, :, :1, :1]).flatten(1).all(1).sum())

    assert plain_targets() > 8
    monkeypatch.setattr(backgrounds, "STEP", 0.0)
    assert plain_targets() == 0


@pytest.mark.slow
def test_the_critic_of_the_phase_before_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read from the run's folder; there, the phase's own `ahead` is the only learning before the first step."""
    monkeypatch.setattr(snapper, "PRICED_BY", 64)
    monkeypatch.setattr(snapper, "AHEAD", 64)
    before = grainy_polisher(AdversarialTuner, tmp_path)
    before.step()
    before.save()
    monkeypatch.setattr(finisher.PictureCritic, "learn", lambda *_: None)
    after = grainy_polisher(Finisher, tmp_path).critic.network.state_dict()
    for name, value in before.critic.network.state_dict().items():
        assert torch.equal(after[name], value)


@pytest.mark.slow
def test_the_critic_pulls_so_many_times_as_hard_as_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the norm of what the loss asks of the pictures made."""

    def asked(pull: float) -> torch.Tensor:
        monkeypatch.setattr(finisher, "PULL", pull)
        trainer = grainy_polisher(Finisher, tmp_path)
        made: list[torch.Tensor] = []
        estimate = trainer.denoise

        def noting(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            made.append(estimate(x, sigma, labels))
            return made[0]

        monkeypatch.setattr(trainer, "denoise", noting)
        return torch.autograd.grad(trainer.loss(), made[0])[0]

    targets = asked(0.0)
    for pull in (1.0, 5.0):
        assert float((asked(pull) - targets).norm()) == pytest.approx(pull * float(targets.norm()), rel=1e-3)


def test_the_critic_pulls_harder_on_second_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic with the same wish for every value: rows 0 to 8 of 16 are own pictures and feel it twice."""
    made: list[torch.Tensor] = []

    def wish(pictures: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        made.append(pictures)
        return torch.ones_like(pictures)

    def asked(pull: float) -> torch.Tensor:
        monkeypatch.setattr(finisher, "PULL", pull)
        trainer = grainy_polisher(Finisher, tmp_path)
        trainer.own = torch.zeros(9, 3, 16, 16), torch.zeros(9, dtype=torch.int64)
        monkeypatch.setattr(trainer.critic, "pull", wish)
        return torch.autograd.grad(trainer.loss(), made[-1])[0]

    by_critic = asked(1.0) - asked(0.0)
    assert float(by_critic[9:].mean()) > 0
    torch.testing.assert_close(by_critic[:9], finisher.OWN_PULL * by_critic[9:10].expand(9, -1, -1, -1))


def test_first_steps_drift_among_first_ones_and_second_steps_among_second_ones() -> None:
    """Noised avatars do not, nor do own pictures that show through their noise."""
    assert drifting(torch.tensor([0.5, 2.0, 5.0, 3.0, SIGMA_MAX]), own=3).tolist() == [
        NEITHER,
        SECOND,
        SECOND,
        NEITHER,
        FIRST,
    ]


def test_drift_pulls_so_many_times_as_hard_as_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drift of one size. Rows 0 to 8 of 16 are own pictures under much noise, rows 10 to 15 noise alone."""
    made: list[torch.Tensor] = []

    def everywhere(pictures: torch.Tensor, labels: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        made.append(pictures)
        assert group.tolist() == [SECOND] * 9 + [NEITHER] + [FIRST] * 6
        return (group != NEITHER).float().view(-1, 1, 1, 1).expand_as(pictures).clone()

    def asked(pull: float) -> torch.Tensor:
        monkeypatch.setattr(finisher, "PULL", 0.0)
        monkeypatch.setattr(finisher, "DRIFT", pull)
        monkeypatch.setattr(finisher, "OWN_FROM", 2.0)
        trainer = grainy_polisher(Finisher, tmp_path)
        trainer.own = torch.zeros(9, 3, 16, 16), torch.zeros(9, dtype=torch.int64)
        monkeypatch.setattr(trainer.drift, "pull", everywhere)
        return torch.autograd.grad(trainer.loss(), made[-1])[0]

    targets = asked(0.0)
    by_drift = asked(5.0) - targets
    assert float(by_drift.norm()) == pytest.approx(5.0 * float(targets.norm()), rel=1e-3)
    torch.testing.assert_close(by_drift[10:], finisher.FIRST_DRIFT * by_drift[:6])
    assert not by_drift[9].any()


@pytest.mark.slow
def test_the_model_learns_to_leave_grain_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with grain in its pictures: beside the critic, too, they come nearer to those without."""
    monkeypatch.setattr(finisher, "PULL", 1.0)
    trainer = grainy_polisher(Finisher, tmp_path)

    def off() -> float:
        x = SIGMA_MAX * torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        labels, sigma = torch.arange(40) % 10, torch.full((40,), SIGMA_MAX)
        with torch.no_grad():
            target = trainer.cleaned(trainer.estimate_before(x, sigma, labels), labels)
            return float((trainer.denoise(x, sigma, labels) - target).abs().mean())

    before = off()
    for _ in range(24):
        trainer.step()
    assert off() < 0.7 * before

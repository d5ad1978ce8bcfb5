"""The end of a recipe: where it starts, what it aims at, and whose critic it goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.grainy_polisher import grainy_polisher
from training import backgrounds, finisher, snapper
from training.adversarial import AdversarialTuner
from training.finisher import EARLY, FIRST, LATER, NEITHER, NEXT, OWN, OWN_FROM, SECOND, Finisher, drifting
from training.network import SIGMA_MAX
from training.recipe import PRESETS
from training.starts import MUCH, kept_of

pytestmark = pytest.mark.slow  # it trains


def test_many_starts_are_what_the_step_before_made(tmp_path: Path) -> None:
    """Rows 0 to 8 of 16: its pictures with noise, to be made of themselves, cleaned, where they show through it."""
    trainer = grainy_polisher(Finisher, tmp_path)
    assert trainer.own is None
    trainer.step()
    assert trainer.own is not None
    pictures, classes, earlier = trainer.own
    x, sigma, labels, target = trainer.examples()
    assert pictures.shape == (9, 3, 16, 16)
    assert torch.equal(labels[:9], classes)
    assert (earlier == SIGMA_MAX).sum() == 6
    assert all(OWN_FROM <= s <= SIGMA_MAX * NEXT for s in sigma[:9].tolist())
    assert (sigma[10:] == SIGMA_MAX).all()
    noise = (x[:9] - pictures) / sigma[:9].view(-1, 1, 1, 1)
    assert abs(float(noise.std()) - 1) < 0.1
    shows = sigma[:9] <= MUCH
    assert shows.any()
    assert torch.equal(target[:9][shows], trainer.cleaned(pictures, classes)[shows])
    asked = torch.cat([~shows, torch.ones(7, dtype=torch.bool)])
    alone = torch.where(sigma > MUCH, SIGMA_MAX / sigma, 1.0)[asked]
    with torch.no_grad():
        made = trainer.estimate_before(x[asked] * alone.view(-1, 1, 1, 1), sigma[asked] * alone, labels[asked])
    assert torch.equal(target[asked], trainer.cleaned(made, labels[asked]))


def test_on_a_gpu_all_rows_go_through_the_weights_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it always sees as many; targets are as without."""
    trainer = grainy_polisher(Finisher, tmp_path)
    trainer.own = own_pictures(9)
    before = trainer.generator.get_state()
    expected = trainer.examples()
    trainer.generator.set_state(before)
    monkeypatch.setattr(finisher, "rows_of", lambda wanted: torch.arange(len(wanted)))
    for found, wanted in zip(trainer.examples(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_where_noise_hides_what_was_there_it_is_noise_alone(tmp_path: Path) -> None:
    """Under more than 8, targets of own pictures and of avatars are one-step pictures of the same noise."""
    trainer = grainy_polisher(Finisher, tmp_path)
    trainer.own = own_pictures(9)
    for _ in range(4):
        x, sigma, labels, target = trainer.examples()
        hidden = (sigma > MUCH) & (sigma < SIGMA_MAX)
        assert hidden[:9].any()
        assert not hidden[:9].all()
        noise = x[hidden] / sigma[hidden].view(-1, 1, 1, 1)
        with torch.no_grad():
            most = torch.full((int(hidden.sum()),), SIGMA_MAX)
            made = trainer.estimate_before(noise * SIGMA_MAX, most, labels[hidden])
        torch.testing.assert_close(target[hidden], trainer.cleaned(made, labels[hidden]), rtol=1e-3, atol=1e-3)


def test_next_steps_begin_at_one_step_samples_first_then_at_those_of_much_noise() -> None:
    """Rows 10 to 15 of 16 are of noise alone, 4 and 7 of much: all are kept, with one other, each with its class."""
    made = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 16, 16) / 16
    sigma = torch.tensor([1.0] * 10 + [SIGMA_MAX] * 6)
    sigma[[4, 7]] = 17.0
    pictures, classes, noise = kept_of(made, sigma, torch.arange(16), OWN, torch.Generator().manual_seed(0))
    assert torch.equal(pictures[:, 0, 0, 0], classes / 16)
    assert torch.equal(noise, sigma[classes])
    assert {4, 7, *range(10, 16)} < set(classes.tolist())
    assert len(set(classes.tolist())) == 9


def test_steps_come_down(tmp_path: Path) -> None:
    """An own picture gets a third of the noise it was made from at most, and what shows a little at least."""
    trainer = grainy_polisher(Finisher, tmp_path)
    earlier = torch.tensor([0.5, 3.0, SIGMA_MAX]).repeat(3)
    most: dict[float, float] = dict.fromkeys(earlier.tolist(), 0.0)
    for _ in range(40):
        trainer.own = torch.zeros(9, 3, 16, 16), torch.zeros(9, dtype=torch.int64), earlier
        sigma = trainer.starts()[1][:9]
        assert float(sigma.min()) >= OWN_FROM
        for noise, start in zip(earlier.tolist(), sigma.tolist(), strict=True):
            most[noise] = max(most[noise], start)
    assert most[0.5] == pytest.approx(OWN_FROM)
    assert 0.9 * 3 * NEXT < most[3.0] <= 3 * NEXT
    assert 0.8 * SIGMA_MAX * NEXT < most[SIGMA_MAX] <= SIGMA_MAX * NEXT


def own_pictures(count: int, made_from: float = SIGMA_MAX) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grey ones of the first class."""
    return torch.zeros(count, 3, 16, 16), torch.zeros(count, dtype=torch.int64), torch.full((count,), made_from)


@pytest.mark.slow
def test_own_pictures_count_less_under_much_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With targets alone, and every distance 1: what they add to the loss falls with sigma squared, while they show."""
    monkeypatch.setattr(Finisher, "critic_pull", 0.0)
    monkeypatch.setattr(finisher, "distances", lambda made, _: made.flatten(1).sum(1) * 0 + 1)

    def cost(noise: float) -> float:
        monkeypatch.setattr(finisher, "OWN_FROM", noise)
        trainer = grainy_polisher(Finisher, tmp_path)
        trainer.own = own_pictures(15, noise / NEXT)
        return (16 * float(trainer.loss().detach()) - 1) / 15  # the last row is noise alone

    assert cost(0.5) == pytest.approx(2**0.25 / 1.25, rel=1e-3)
    assert cost(5.0) == pytest.approx(1.01**0.25 / 26, rel=1e-3)
    assert cost(20.0) == pytest.approx(1.0, rel=1e-3)


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
        monkeypatch.setattr(Finisher, "critic_pull", pull)
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


@pytest.mark.slow
def test_the_critic_pulls_harder_on_second_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic with the same wish for every value: rows 0 to 8 of 16 are own pictures and feel it twice."""
    made: list[torch.Tensor] = []

    def wish(pictures: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        made.append(pictures)
        return torch.ones_like(pictures)

    def asked(pull: float) -> torch.Tensor:
        monkeypatch.setattr(Finisher, "critic_pull", pull)
        trainer = grainy_polisher(Finisher, tmp_path)
        trainer.own = own_pictures(9)
        monkeypatch.setattr(trainer.critic, "pull", wish)
        return torch.autograd.grad(trainer.loss(), made[-1])[0]

    by_critic = asked(1.0) - asked(0.0)
    assert float(by_critic[9:].mean()) > 0
    torch.testing.assert_close(by_critic[:9], finisher.OWN_PULL * by_critic[9:10].expand(9, -1, -1, -1))


def test_steps_drift_among_their_like() -> None:
    """Noised avatars do not drift, nor do own pictures that show through their noise."""
    sigma = torch.tensor([0.5, 2.0, 17.0, 2.0, 3.0, SIGMA_MAX])
    earlier = torch.tensor([SIGMA_MAX, SIGMA_MAX, SIGMA_MAX, 17.0])
    assert drifting(sigma, earlier).tolist() == [NEITHER, SECOND, EARLY, LATER, NEITHER, FIRST]
    assert drifting(sigma, torch.empty(0)).tolist() == [NEITHER] * 5 + [FIRST]


@pytest.mark.slow
def test_drift_pulls_so_many_times_as_hard_as_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drift of one size. Rows 0 to 8 of 16 are own pictures under much noise, rows 10 to 15 noise alone."""
    made: list[torch.Tensor] = []

    def everywhere(pictures: torch.Tensor, labels: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        made.append(pictures)
        assert group.tolist() == [SECOND] * 9 + [NEITHER] + [FIRST] * 6
        return (group != NEITHER).float().view(-1, 1, 1, 1).expand_as(pictures).clone()

    def asked(pull: float) -> torch.Tensor:
        monkeypatch.setattr(Finisher, "critic_pull", 0.0)
        monkeypatch.setattr(Finisher, "drift_pull", pull)
        monkeypatch.setattr(finisher, "OWN_FROM", 2.0)
        monkeypatch.setattr(finisher, "NEXT", 3.0 / SIGMA_MAX)
        trainer = grainy_polisher(Finisher, tmp_path)
        trainer.own = own_pictures(9)
        monkeypatch.setattr(trainer.drift, "pull", everywhere)
        return torch.autograd.grad(trainer.loss(), made[-1])[0]

    targets = asked(0.0)
    by_drift = asked(5.0) - targets
    assert float(by_drift.norm()) == pytest.approx(5.0 * float(targets.norm()), rel=1e-3)
    torch.testing.assert_close(by_drift[10:], PRESETS["smoke"].finish.first_drift * by_drift[:6])
    assert not by_drift[9].any()


@pytest.mark.slow
def test_the_model_learns_to_leave_grain_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with grain in its pictures: beside the critic, too, they come nearer to those without."""
    monkeypatch.setattr(Finisher, "critic_pull", 1.0)
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

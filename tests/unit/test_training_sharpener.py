"""The end of growth: where it begins, what it aims at, what moves, and how hard its critic pulls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.small_grower import small_grower, smaller_weights
from training import sharpener
from training.finisher import FIRST, LATER, NEITHER, NEXT, OWN_FROM, SECOND
from training.grower import Grower
from training.network import SIGMA_MAX
from training.polisher import without_grain
from training.sharpener import Sharpener

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture
def trainer(tmp_path: Path) -> Sharpener:
    """After a growth of no steps, whose smaller network it has."""
    grown = small_grower(Grower, tmp_path)
    grown.start_from(smaller_weights())
    grown.save()
    sharper = small_grower(Sharpener, tmp_path)
    sharper.start_from(dict(grown.unet.state_dict()))
    for mine, its in zip(sharper.before.parameters(), grown.before.parameters(), strict=True):
        assert torch.equal(mine, its)
    return sharper


def test_it_begins_after_growth(tmp_path: Path) -> None:
    sharper = small_grower(Sharpener, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"grow\.state"):
        sharper.start_from(dict(sharper.unet.state_dict()))


def test_many_starts_are_what_the_step_before_made(trainer: Sharpener) -> None:
    """Rows 0 to 7 of 16: its pictures with less noise than they came from; what is known of them has no grain."""
    trainer.step()
    assert trainer.own is not None
    pictures, classes, earlier = trainer.own
    x, sigma, labels, known = trainer.beginnings()
    assert pictures.shape == (8, 3, 16, 16)
    assert torch.equal(labels[:8], classes)
    assert (sigma[:8] >= OWN_FROM).all()
    assert (sigma[:8] <= (earlier * NEXT).clamp(min=OWN_FROM)).all()
    assert (sigma[11:] == SIGMA_MAX).all()
    noise = (x[:8] - pictures) / sigma[:8].view(-1, 1, 1, 1)
    assert abs(float(noise.std()) - 1) < 0.1
    assert torch.equal(known[:8], trainer.backgrounds.levelled(without_grain(pictures), classes))
    assert len(known) == 11


def test_it_moves_the_way_up_and_nothing_before(trainer: Sharpener) -> None:
    before = {name: value.clone() for name, value in trainer.unet.state_dict().items()}
    trainer.step()
    moved = {name for name, value in trainer.unet.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"up_blocks", "conv_norm_out", "conv_out"}
    blocks = {".".join(name.split(".")[:2]) for name in moved if "blocks" in name}
    assert blocks == {f"up_blocks.{level}" for level in range(4)}
    assert not any(name.startswith("up_blocks.0.resnets.0.norm1") for name in moved)


@pytest.mark.parametrize(("part", "setting"), [("critic", "PULL"), ("drift", "DRIFT")])
def test_critic_and_drift_pull_so_many_times_as_hard_as_targets(
    trainer: Sharpener, monkeypatch: pytest.MonkeyPatch, part: str, setting: str
) -> None:
    """One that pulls every value alike, on the same batch; the other one not at all."""
    trainer.step()
    trainer.step()
    monkeypatch.setattr(getattr(trainer, part), "pull", lambda pictures, *_: torch.ones_like(pictures))
    monkeypatch.setattr(trainer.critic if part == "drift" else trainer.drift, "pull", lambda x, *_: torch.zeros_like(x))
    estimate, source, own = trainer.denoise, trainer.generator.get_state(), trainer.own

    def asked(pull: float) -> Tensor:
        monkeypatch.setattr(sharpener, setting, pull)
        trainer.generator.set_state(source)
        trainer.own = own
        made: list[Tensor] = []

        def noting(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
            made.append(estimate(x, sigma, labels))
            return made[0]

        monkeypatch.setattr(trainer, "denoise", noting)
        return torch.autograd.grad(trainer.loss(), made[0])[0]

    targets = asked(0.0)
    by_it = asked(4.0) - targets
    assert float(by_it.norm()) == pytest.approx(4 * float(targets.norm()), rel=1e-3)
    torch.testing.assert_close(by_it, by_it[0, 0, 0, 0].expand_as(by_it))


def test_steps_drift_among_their_like(trainer: Sharpener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0 to 7 of 16 are own pictures, 11 to 15 noise alone, which drift as first steps."""
    groups: list[Tensor] = []

    def noting(pictures: Tensor, _: Tensor, group: Tensor) -> Tensor:
        groups.append(group)
        return torch.zeros_like(pictures)

    monkeypatch.setattr(trainer.drift, "pull", noting)
    trainer.step()
    assert trainer.own is not None
    earlier = trainer.own[2]
    monkeypatch.setattr(sharpener, "OWN_FROM", 2.0)
    trainer.step()
    assert groups[0].tolist() == [NEITHER] * 11 + [FIRST] * 5
    second = groups[1]
    assert second[8:].tolist() == groups[0][8:].tolist()
    assert {FIRST, NEITHER}.isdisjoint(second[:8].tolist())
    assert (earlier[second[:8] == SECOND] == SIGMA_MAX).all()
    assert (earlier[second[:8] == LATER] < SIGMA_MAX).all()


def test_critic_and_drift_are_a_part_of_the_state(trainer: Sharpener, tmp_path: Path) -> None:
    """What goes on from a save has the same critic and pictures, and takes the same next step."""
    trainer.step()
    trainer.save()
    other = small_grower(Sharpener, tmp_path)
    assert other.resume()
    assert float(other.step()) == float(trainer.step())
    for mine, its in zip(other.critic.network.parameters(), trainer.critic.network.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert int(other.drift.counts.sum()) == int(trainer.drift.counts.sum()) > 0

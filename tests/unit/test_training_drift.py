"""Variety: where points drift, which pictures take part, and that pictures too much alike become less so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.plain_avatars import plain_avatars
from training import drift
from training.data import Avatars
from training.drift import Drift, drift_of
from training.state import load_state, save_state


@pytest.fixture
def avatars(tmp_path: Path) -> Avatars:
    return plain_avatars(tmp_path)


def drifting(avatars: Avatars) -> Drift:
    return Drift(avatars, 2, torch.Generator().manual_seed(0), "cpu", bf16=False)


@pytest.mark.parametrize(("spread", "least", "most"), [(0.3, 0.9, 1.0), (1.8, 0.0, 0.3)])
def test_what_is_crowded_spreads_and_what_is_scattered_gathers(spread: float, least: float, most: float) -> None:
    """Share of points that drift away from the middle, where real ones have a spread of 1."""
    source = torch.Generator().manual_seed(0)
    real, made = torch.randn(256, 2, generator=source) / 1.8, spread * torch.randn(64, 2, generator=source) / 1.8
    outwards = (drift_of(made[None], real[None])[0] * made).sum(1) > 0
    assert least <= float(outwards.float().mean()) <= most


def test_views_are_scaled_to_a_mean_distance_of_one(avatars: Avatars) -> None:
    found = drifting(avatars)
    for view in found.looked[0]:
        apart = torch.stack([torch.pdist(of_class).mean() for of_class in view.split(12)]).mean()
        assert float(apart) == pytest.approx(1.0, rel=1e-3)


def test_pictures_left_out_or_of_a_kind_still_unknown_are_not_pulled(
    avatars: Avatars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "KEPT", 3)
    found = drifting(avatars)
    pictures, labels = avatars.batch(6, torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 3, 3, 3, 3, 4])
    group = torch.tensor([0, 0, 1, -1, 0, 0])
    pulled = found.pull(pictures, labels, group).flatten(1).abs().sum(1) > 0
    assert pulled.tolist() == [True, True, False, False, True, False]
    assert found.counts[3] == 3
    assert found.counts.sum() == 5


@pytest.mark.slow
def test_rows_left_out_may_be_looked_at_all_the_same(avatars: Avatars, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they are, so that it always sees as many: what pulls the others, and what is kept, is as without."""
    monkeypatch.setattr(drift, "KEPT", 3)
    some, whole = drifting(avatars), drifting(avatars)
    pictures, labels = avatars.batch(12, torch.Generator().manual_seed(1))
    group = torch.tensor([0, -1, 1, 0, -1, 0, 1, 1, 0, 0, -1, 0])
    for _ in range(4):
        expected = some.pull(pictures, labels, group)
        with monkeypatch.context() as patch:
            patch.setattr(drift, "rows_of", lambda wanted: torch.arange(len(wanted)))
            found = whole.pull(pictures, labels, group)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        assert not found[group < 0].any()
        assert torch.equal(some.counts[:-1], whole.counts[:-1])  # the last: what does not drift
    assert expected.any()
    for one, other in zip(some.kept, whole.kept, strict=True):
        torch.testing.assert_close(one[:-1], other[:-1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_was_kept_is_a_part_of_the_state(
    avatars: Avatars, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(drift, "KEPT", 4)
    first, second = drifting(avatars), drifting(avatars)
    pictures, labels = avatars.batch(40, torch.Generator().manual_seed(1))
    group = torch.zeros(40, dtype=torch.int64)
    first.pull(pictures, labels, group)
    save_state(tmp_path / "kept.state", first.state())
    second.restore(load_state(tmp_path / "kept.state", "cpu"))
    second.generator.set_state(first.generator.get_state())
    assert torch.equal(first.pull(pictures, labels, group), second.pull(pictures, labels, group))


@pytest.mark.slow
def test_pictures_too_much_alike_become_less_so(avatars: Avatars, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve greys that hardly differ, where avatars have twelve colours: moved by what pulls them, they spread."""
    monkeypatch.setattr(drift, "KEPT", 12)
    found = drifting(avatars)
    pictures = torch.linspace(-0.05, 0.05, 12).view(12, 1, 1, 1).repeat(1, 3, 16, 16)
    labels, group = torch.zeros(12, dtype=torch.int64), torch.zeros(12, dtype=torch.int64)

    def spread() -> float:
        return float(pictures.mean((2, 3)).std(0).mean())

    before = spread()
    for _ in range(24):  # slowly at first: 1.4 to 1.8 times after twelve
        pull = found.pull(pictures, labels, group)
        pictures = (pictures - 0.05 * pull / pull.abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-9)).clamp(-1, 1)
    assert spread() > 2 * before

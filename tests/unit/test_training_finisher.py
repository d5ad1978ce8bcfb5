"""The end of a recipe: second steps begin at the model's own pictures and should keep them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.grainy_polisher import grainy_polisher
from training import backgrounds
from training.data import to_signed
from training.finisher import KEPT, OWN_FROM, Finisher
from training.network import SIGMA_MAX
from training.starts import OWN_TO


def test_a_quarter_of_the_starts_are_own_pictures(tmp_path: Path) -> None:
    """Rows 0 to 3 of 16: under the noise is a kept picture of the row's class, and what is made of it is the target."""
    finisher = grainy_polisher(Finisher, tmp_path)
    x, sigma, labels, target = finisher.examples()
    assert all(OWN_FROM <= s <= OWN_TO for s in sigma[:4].tolist())
    assert (sigma[8:] == SIGMA_MAX).all()
    own = to_signed(finisher.own)
    assert len(own) == KEPT
    for row in range(4):
        noises = (x[row] - own[int(labels[row]) :: 10]) / sigma[row]
        assert abs(float(noises.std((1, 2, 3)).min()) - 1) < 0.1
        assert float(noises.mean((1, 2, 3)).abs().min()) < 0.1
    with torch.no_grad():
        made = finisher.estimate_before(x, sigma, labels)
    assert torch.equal(target, finisher.cleaned(made, labels))


def test_own_pictures_have_no_grain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with grain: what is kept has passed the filter, and still shows different pictures."""
    monkeypatch.setattr(backgrounds, "STEP", 0.0)  # else the whole of such pictures is background
    finisher = grainy_polisher(Finisher, tmp_path)
    x = SIGMA_MAX * torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        grainy = finisher.estimate_before(x, torch.full((40,), SIGMA_MAX), torch.arange(40) % 10)
    own = to_signed(finisher.own[:40])
    assert float(own.diff(dim=3).abs().mean()) < 0.5 * float(grainy.diff(dim=3).abs().mean())
    assert len({picture.numpy().tobytes() for picture in finisher.own[:40]}) == 40


def test_targets_have_one_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These pictures are all background: targets are of one colour, and would not be without the levelling."""

    def plain_targets() -> int:
        target = grainy_polisher(Finisher, tmp_path).examples()[3]
        return int((target == target[:, :, :1, :1]).flatten(1).all(1).sum())

    assert plain_targets() > 8
    monkeypatch.setattr(backgrounds, "STEP", 0.0)
    assert plain_targets() == 0

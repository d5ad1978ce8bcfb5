"""The polish after distillation: what its filter takes and keeps, where it starts, and that the model learns it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.grainy_polisher import grainy_polisher
from tests.plain_avatars import plain_avatars
from training.network import SIGMA_MAX
from training.polisher import Polisher, flattened
from training.recipe import CLASSES
from training.starts import draw_starts

pytestmark = pytest.mark.slow  # it trains


def test_the_filter_takes_grain_and_keeps_edges() -> None:
    """Two flat halves with noise of 0.05: most of the noise goes, the edge between them does not move."""
    clean = torch.full((1, 3, 32, 32), -0.6)
    clean[..., 16:] = 0.6
    torch.testing.assert_close(flattened(clean), clean, atol=1e-5, rtol=0)
    grainy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    after = flattened(grainy)
    assert float((after - clean).square().mean()) < 0.2 * float((grainy - clean).square().mean())
    assert float((after[..., 16] - after[..., 15]).mean()) > 1.15


def test_the_filter_leaves_other_rows_alone() -> None:
    rows = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flattened(rows)[1:2], flattened(rows[1:2]))


def test_starts_are_noise_and_noised_pictures(tmp_path: Path) -> None:
    """A quarter begins at pictures, at any noise from the least asked; values spread as widely as the noise."""
    generator = torch.Generator().manual_seed(0)
    x, sigma, labels, _ = draw_starts(plain_avatars(tmp_path), 40, 0.25, 0.2, generator)
    assert tuple(x.shape) == (40, 3, 16, 16)
    assert (sigma[10:] == SIGMA_MAX).all()
    assert all(0.2 <= s < SIGMA_MAX for s in sigma[:10].tolist())
    torch.testing.assert_close(x.std((2, 3)).mean(1), sigma, rtol=0.15, atol=0)
    assert set(labels.tolist()) <= set(range(len(CLASSES)))


def test_the_model_learns_to_leave_grain_out(tmp_path: Path) -> None:
    """A network with grain in its pictures: its distance to them without it falls by a third in thirty steps."""
    polisher = grainy_polisher(Polisher, tmp_path)
    losses = [polisher.step() for _ in range(30)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])

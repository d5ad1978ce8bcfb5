"""The end of a recipe: second steps begin at the model's own pictures and lead to the avatars that those are like."""

from __future__ import annotations

import pytest
import torch

from tests.grainy_polisher import grainy_polisher
from training.balance import squared_distances
from training.data import to_signed
from training.finisher import KEPT, OWN_FROM, OWN_TO, Finisher
from training.network import SIGMA_MAX


@pytest.fixture(scope="module")
def finisher(tmp_path_factory: pytest.TempPathFactory) -> Finisher:
    """Of plain avatars, with batches of 16."""
    return grainy_polisher(Finisher, tmp_path_factory.mktemp("finisher"))


def test_own_pictures_are_like_the_nearest_avatar_of_their_class(finisher: Finisher) -> None:
    assert len(finisher.made) == len(finisher.like) == len(finisher.made_labels) == KEPT
    for label in range(10):
        of_class = finisher.made_labels == label
        pool = torch.from_numpy(finisher.data.images[label])
        distance = (finisher.made[of_class].float() - finisher.like[of_class].float()).square().mean((1, 2, 3))
        nearest = squared_distances(finisher.made[of_class], pool).min(1).values
        torch.testing.assert_close(distance, nearest, rtol=1e-4, atol=0.1)


def test_a_quarter_of_the_starts_are_own_pictures(finisher: Finisher) -> None:
    """Rows 0 to 3 of 16: what is left without the noise is a kept picture, the target what that one is like."""
    x, sigma, labels, target = finisher.examples()
    assert all(OWN_FROM <= s <= OWN_TO for s in sigma[:4].tolist())
    assert (sigma[8:] == SIGMA_MAX).all()
    kept, like = to_signed(finisher.made), to_signed(finisher.like)
    for row in range(4):
        same = (like == target[row]).all(3).all(2).all(1) & (finisher.made_labels == labels[row])
        assert same.any()
        noise = (x[row] - kept[same]) / sigma[row]
        assert float((noise.std((1, 2, 3)) - 1).abs().min()) < 0.1

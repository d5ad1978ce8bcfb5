"""The figures that the evaluation reports."""

from __future__ import annotations

import numpy as np
import pytest

from training.metrics import (
    frechet_distance,
    linear_probe,
    nearest_distance,
    precision_recall,
    probe_predict,
    total_variation,
)


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)


def test_frechet_distance_of_a_set_to_itself_is_zero(points: np.ndarray) -> None:
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_a_shift_is_its_squared_length(points: np.ndarray) -> None:
    assert frechet_distance(points, points + 2) == pytest.approx(6 * 4, rel=1e-4)


def test_frechet_distance_of_a_scaling_compares_spreads(points: np.ndarray) -> None:
    """Scaling by 3 about the mean leaves (3 - 1)^2 times the trace of the covariance."""
    centred = points - points.mean(0)
    trace = np.trace(np.cov(centred, rowvar=False))
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * trace, rel=1e-4)


def test_precision_and_recall_see_overlap(points: np.ndarray) -> None:
    """Equal sets score 1, far ones 0; a set collapsed to a part of the other keeps precision only."""
    assert precision_recall(points, points) == (1.0, 1.0)
    assert precision_recall(points, points + 100) == (0.0, 0.0)
    part = points[points[:, 0] > 0.5]
    precision, recall = precision_recall(points, part)
    assert precision == 1.0
    assert recall < 0.6


def test_nearest_distance_finds_copies() -> None:
    """A copy is at distance 0, a copy brightened by 3 at distance 3, wherever it lies."""
    images = np.random.default_rng(0).integers(0, 250, size=(50, 4, 4, 3), dtype=np.uint8)
    found = nearest_distance(np.stack([images[49], images[3] + np.uint8(3)]), images, chunk=7)
    assert found.tolist() == pytest.approx([0, 3], abs=0.05)


def test_total_variation_is_the_share_that_would_have_to_move() -> None:
    assert total_variation(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 3) == pytest.approx(0.25)
    assert total_variation(np.array([0, 0]), np.array([2, 2]), 3) == 1.0


def test_the_probe_learns_separable_classes(points: np.ndarray) -> None:
    labels = np.arange(400) % 3
    shifted = points + 8 * np.eye(6)[labels]
    weights = linear_probe(shifted[:300], labels[:300], 3)
    assert (probe_predict(weights, shifted[300:]) == labels[300:]).mean() > 0.98

"""Distances between sets of pictures, on features or pixels. float64 where sums are long."""

from __future__ import annotations

import numpy as np
import torch

from training import balance


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features `[N, D]` (Heusel et al. 2017)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances `[len(a), len(b)]`."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None, :]
    return np.maximum(squares - 2 * (a @ b.T), 0)


def precision_recall(real: np.ndarray, made: np.ndarray, k: int = 3) -> tuple[float, float]:
    """k-nearest-neighbour precision and recall of features (Kynkaanniemi et al. 2019)."""

    def radii(points: np.ndarray) -> np.ndarray:
        return np.partition(squared_distances(points, points), k, axis=1)[:, k]  # a point is its own first

    between = squared_distances(made, real)
    precision = (between <= radii(real)[None, :]).any(1).mean()
    recall = (squared_distances(real, made) <= radii(made)[None, :]).any(1).mean()
    return float(precision), float(recall)


def nearest_distance(images: np.ndarray, among: np.ndarray, chunk: int = 4000, device: str = "cpu") -> np.ndarray:
    """Root-mean-square pixel distance (of 255) from each uint8 picture to its nearest one among others `[N]`."""
    queries, best = torch.from_numpy(images).to(device), torch.full((len(images),), torch.inf, device=device)
    for i in range(0, len(among), chunk):
        others = torch.from_numpy(among[i : i + chunk]).to(device)
        best = torch.minimum(best, balance.squared_distances(queries, others).amin(1))
    return np.asarray(best.clamp(min=0).sqrt().cpu())


def total_variation(a: np.ndarray, b: np.ndarray, values: int) -> float:
    """Total variation distance, 0 to 1, between the histograms of two lists of codes."""
    first, second = (np.bincount(codes, minlength=values) / len(codes) for codes in (a, b))
    return float(np.abs(first - second).sum() / 2)


def linear_probe(features: np.ndarray, labels: np.ndarray, classes: int, ridge: float = 1e-2) -> np.ndarray:
    """Least-squares one-hot classifier: weights `[D + 1, classes]` for `probe_predict`."""
    x = _with_bias(features)
    gram = x.T @ x + ridge * len(x) * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(gram, x.T @ np.eye(classes)[labels]))


def probe_predict(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Class of each row of features `[N]`."""
    return np.asarray((_with_bias(features) @ weights).argmax(1))


def _with_bias(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)

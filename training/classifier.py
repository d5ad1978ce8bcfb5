"""A small classifier of drawing style and attributes, trained on real avatars only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.data import Avatars, to_signed
from training.recipe import CLASSES

MAX_VALUES = 60  # columns with more values (rotations and the like) are no histogram to compare
FREE = ("backgroundRotation", "secondaryBackgroundColor", "backgroundType", "seed")  # not visible in a picture


@dataclass(frozen=True)
class Column:
    """One attribute of one class and the outputs that predict it."""

    label: int
    name: str
    values: list[str]
    start: int


class Classifier(nn.Module):
    """Class logits first, then those of every attribute of every class, from float32 `[B, 3, H, W]`."""

    def __init__(self, columns: list[Column], width: int = 48) -> None:
        super().__init__()
        self.columns = columns
        outputs = len(CLASSES) + sum(len(column.values) for column in columns)
        self.body = nn.Sequential(
            *self._block(3, width), *self._block(width, 2 * width), *self._block(2 * width, 4 * width)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(4 * width * 16, outputs))

    @staticmethod
    def _block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits

    def logits(self, images: np.ndarray) -> np.ndarray:
        """All outputs for uint8 pictures `[N, H, W, 3]`: `[N, outputs]`."""
        return self._in_batches(self, images)

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the last convolution sees in uint8 pictures `[N, H, W, 3]`, its mean over all places: `[N, D]`."""
        return self._in_batches(lambda x: self.body(x).mean((2, 3)), images)

    @torch.inference_mode()
    def _in_batches(self, read: Callable[[Tensor], Tensor], images: np.ndarray, batch: int = 500) -> np.ndarray:
        self.eval()
        device = next(self.parameters()).device
        parts = [
            read(to_signed(torch.from_numpy(np.ascontiguousarray(images[i : i + batch])).to(device)))
            for i in range(0, len(images), batch)
        ]
        return torch.cat(parts).cpu().numpy()


def classes_of(logits: np.ndarray) -> np.ndarray:
    """Predicted class of each row."""
    return np.asarray(logits[:, : len(CLASSES)].argmax(1))


def codes_of(logits: np.ndarray, column: Column) -> np.ndarray:
    """Predicted value of an attribute for each row."""
    return np.asarray(logits[:, column.start : column.start + len(column.values)].argmax(1))


def _columns(data: Avatars) -> tuple[list[Column], np.ndarray]:
    """The attributes to learn, and every training picture's codes `[N, columns]` (-1: of another class)."""
    columns: list[Column] = []
    codes: list[np.ndarray] = []
    start, total, first = len(CLASSES), len(data), 0
    for label, images in enumerate(data.images):
        for name, attribute in data.attributes(label).items():
            if name not in FREE and 2 <= len(attribute.values) <= MAX_VALUES:
                columns.append(Column(label, name, attribute.values, start))
                start += len(attribute.values)
                filled = np.full(total, -1)
                filled[first : first + len(images)] = attribute.codes
                codes.append(filled)
        first += len(images)
    return columns, np.stack(codes, axis=1)


def train_classifier(data: Avatars, epochs: int, device: str = "cpu", batch: int = 128) -> Classifier:
    """Learns style and attributes of real avatars, shuffled, for some passes over the data."""
    columns, codes = _columns(data)
    images = data.pool
    labels = np.repeat(np.arange(len(CLASSES)), [len(part) for part in data.images])
    model = Classifier(columns).to(device)
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(2, steps))
    random = np.random.default_rng(0)
    for _ in range(epochs):
        order = random.permutation(len(images))
        for i in range(0, len(images) - batch + 1, batch):
            model.train()
            rows = np.sort(order[i : i + batch])
            logits = model(to_signed(torch.from_numpy(images[rows]).to(device)))
            loss = _loss(logits, labels[rows], codes[rows], columns)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    return model.eval()


def _loss(logits: Tensor, labels: np.ndarray, codes: np.ndarray, columns: list[Column]) -> Tensor:
    """Cross entropy of the class plus the mean cross entropy of each picture's own attributes."""
    target = torch.from_numpy(labels).to(logits.device)
    loss = nn.functional.cross_entropy(logits[:, : len(CLASSES)], target)
    own = torch.from_numpy(codes).to(logits.device)
    for i, column in enumerate(columns):
        rows = (own[:, i] >= 0).nonzero().flatten()
        if len(rows):
            part = logits[rows, column.start : column.start + len(column.values)]
            loss = loss + nn.functional.cross_entropy(part, own[rows, i], reduction="sum") / (5 * len(labels))
    return loss

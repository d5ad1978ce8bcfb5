"""What real avatars look like, and how far other pictures are from that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.classifier import Classifier, Column, classes_of, codes_of, train_classifier
from training.data import Avatars
from training.features import Features
from training.metrics import (
    frechet_distance,
    linear_probe,
    nearest_distance,
    precision_recall,
    probe_predict,
    total_variation,
)
from training.recipe import CLASSES

COMPARED = 300  # held-out pictures of a class whose attributes others are compared with
READABLE = 0.8  # attributes that the classifier reads this well on held-out pictures are compared


class Judge:
    """Real pictures (`n` for reference, `n` held out), their features, and a classifier trained on real ones.

    Slow parts are kept in `cache`, named by the data's folder and by `n`.
    """

    def __init__(self, folder: Path, n: int, cache: Path, device: str, epochs: int) -> None:
        self.train, self.heldout = Avatars(folder, "train"), Avatars(folder, "heldout")
        per_class = n // len(CLASSES)
        self.reference_images, self.labels = self.train.take(per_class)
        self.heldout_images, _ = self.heldout.take(per_class)
        self.extract = Features(device)
        cache.mkdir(parents=True, exist_ok=True)
        name = folder.name
        self.reference = self._cached(cache / f"{name}-train-{n}.npy", self.reference_images)
        self.unseen = self._cached(cache / f"{name}-heldout-{n}.npy", self.heldout_images)
        self.probe = linear_probe(self.reference, self.labels, len(CLASSES))
        self.classifier = self._classifier(cache / f"{name}-classifier-{epochs}.pt", epochs, device)
        self.reference_read = self.classifier.features(self.reference_images)
        self._read_heldout()

    def _cached(self, path: Path, images: np.ndarray) -> np.ndarray:
        if not path.exists():
            np.save(path, self.extract(images))
        return np.asarray(np.load(path))

    def _classifier(self, path: Path, epochs: int, device: str) -> Classifier:
        if path.exists():
            return load_classifier(path, device)
        model = train_classifier(self.train, epochs, device)
        torch.save({"columns": [vars(c) for c in model.columns], "weights": model.state_dict()}, path)
        return model

    def _read_heldout(self) -> None:
        """Finds the attributes that can be read off pictures, and their histograms on held-out ones."""
        self.compared = min(COMPARED, *(len(images) // 2 for images in self.heldout.images))
        images, labels = self.heldout.take(self.compared)
        logits = self.classifier.logits(images)
        self.readable = []
        stored = [self.heldout.attributes(label) for label in range(len(CLASSES))]
        self.histograms = {}
        for column in self.classifier.columns:
            attribute = stored[column.label].get(column.name)
            if attribute is None:
                continue
            read = codes_of(logits[labels == column.label], column)
            true = np.array(attribute.values)[attribute.codes][: self.compared]
            if (np.array(column.values)[read] == true).mean() >= READABLE:
                self.readable.append(column)
                self.histograms[column.label, column.name] = read

    def distance(self, images: np.ndarray) -> float:
        """Frechet distance of pictures to the reference set."""
        return frechet_distance(self.reference, self.extract(images))

    def attribute_distance(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Mean total variation between attribute histograms of pictures and of held-out real ones."""
        logits = self.classifier.logits(images)
        found = [
            total_variation(codes_of(logits[labels == c.label], c), self.histograms[c.label, c.name], len(c.values))
            for c in self.readable
            if (labels == c.label).any()
        ]
        return float(np.mean(found)) if found else float("nan")

    def figures(self, images: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
        """Every figure of one set of pictures."""
        return self._figures(images, self.extract(images), labels)

    def _figures(self, images: np.ndarray, features: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
        precision, recall = precision_recall(self.reference, features)
        nearest = nearest_distance(images, self.train.pool, device=self.extract.device)
        result: dict[str, Any] = {
            "fd": round(frechet_distance(self.reference, features), 1),
            "fd_cnn": round(frechet_distance(self.reference_read, self.classifier.features(images)), 2),
            "precision": round(precision, 3),
            "recall": round(recall, 3),
            "nearest_train_rms_median": round(float(np.median(nearest)), 2),
            "nearest_train_rms_1st_percentile": round(float(np.percentile(nearest, 1)), 2),
        }
        if labels is not None:
            probe = probe_predict(self.probe, features) == labels
            style = classes_of(self.classifier.logits(images)) == labels
            result |= {
                "class_accuracy_probe": round(float(probe.mean()), 3),
                "class_accuracy_cnn": round(float(style.mean()), 3),
                "class_accuracy_probe_by_class": {
                    name: round(float(probe[labels == i].mean()), 2)
                    for i, name in enumerate(CLASSES)
                    if (labels == i).any()
                },
                "attribute_total_variation": round(self.attribute_distance(images, labels), 3),
            }
        return result

    def floor(self) -> dict[str, Any]:
        """The figures of held-out real pictures: what a perfect model would get."""
        found = self._figures(self.heldout_images, self.unseen, self.labels)
        # not with themselves: with avatars that are held out beside those
        others = [images[self.compared :][: len(self.labels) // len(CLASSES)] for images in self.heldout.images]
        labels = np.repeat(np.arange(len(CLASSES)), [len(images) for images in others])
        distance = round(self.attribute_distance(np.concatenate(others), labels), 3)
        return found | {"attribute_total_variation": distance, "readable_attributes": len(self.readable)}


def load_classifier(path: Path, device: str) -> Classifier:
    """A classifier that `Judge` kept."""
    stored = torch.load(path, map_location=device, weights_only=True)
    model = Classifier([Column(**column) for column in stored["columns"]]).to(device)
    model.load_state_dict(stored["weights"])
    return model.eval()

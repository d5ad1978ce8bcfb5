"""What every peer does alike: settings, a warm pipeline, one call for several requests, PNG and base64.

A peer adds only what its framework is for: HTTP, queues, batches, processes. Runs in the peers' environment and
imports nothing of Onestep.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConsistencyModelPipeline
from diffusers.utils import logging
from PIL import Image

PNG_LEVEL = 4  # zlib's, the same on both sides


@dataclass(frozen=True)
class Settings:
    """What the search varies, and where to serve what; passed in the environment so that workers see it too."""

    model: str  # a diffusers folder
    port: int
    threads: int  # of torch, in each process that has a model
    workers: int  # processes that have a model
    max_batch: int  # most images in one pipeline call
    wait_ms: float  # the framework's knob for waiting, in milliseconds

    @classmethod
    def from_environment(cls) -> Settings:
        """The settings that `benchmarks.compare` put into PEER_MODEL, PEER_PORT, and so on."""
        return cls(
            model=os.environ["PEER_MODEL"],
            port=int(os.environ.get("PEER_PORT", "8000")),
            threads=int(os.environ.get("PEER_THREADS", "2")),
            workers=int(os.environ.get("PEER_WORKERS", "1")),
            max_batch=int(os.environ.get("PEER_MAX_BATCH", "8")),
            wait_ms=float(os.environ.get("PEER_WAIT_MS", "5")),
        )


@dataclass(frozen=True)
class Wish:
    """One image that a request asks for."""

    class_label: int | None
    seed: int
    num_inference_steps: int


def wishes(body: dict[str, Any]) -> list[Wish]:
    """The images of a request body; image i has seed + i, one class label serves all."""
    count, labels = int(body.get("batch_size", 1)), body.get("class_labels")
    if body.get("output_format", "png") != "png":
        raise ValueError("output_format must be png")
    labels = list(labels) if isinstance(labels, list) else [labels] * count
    if len(labels) != count:
        raise ValueError(f"class_labels must be one or {count}")
    steps = int(body.get("num_inference_steps", 1))
    return [Wish(label, int(body["seed"]) + i, steps) for i, label in enumerate(labels)]


class Pipeline:
    """A `ConsistencyModelPipeline` on the CPU in float32, loaded and warm. One call at a time."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.max_batch = settings.max_batch
        self.pipeline = ConsistencyModelPipeline.from_pretrained(settings.model, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        classes = self.pipeline.unet.config.num_class_embeds
        for size in {1, settings.max_batch}:
            self([Wish(None if classes is None else i % classes, i, 1) for i in range(size)])
        if folder := os.environ.get("PEER_READY"):
            Path(folder, str(os.getpid())).touch()  # tells that this worker is ready too

    def __call__(self, asked: Sequence[Wish]) -> list[Image.Image]:
        """The images, in order. A call of the pipeline has one number of steps: equal ones go together, few first."""
        made: dict[int, Image.Image] = {}
        for steps in sorted({wish.num_inference_steps for wish in asked}):
            places = [place for place, wish in enumerate(asked) if wish.num_inference_steps == steps]
            for first in range(0, len(places), self.max_batch):
                part = places[first : first + self.max_batch]
                made.update(zip(part, self._call([asked[place] for place in part], steps), strict=True))
        return [made[place] for place in range(len(asked))]

    def _call(self, asked: Sequence[Wish], steps: int) -> list[Image.Image]:
        labels = [wish.class_label for wish in asked]
        images: list[Image.Image] = self.pipeline(
            batch_size=len(asked),
            class_labels=None if labels[0] is None else labels,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(wish.seed) for wish in asked],
        ).images
        return images

    def together(self, bodies: Sequence[dict[str, Any]]) -> list[list[Image.Image]]:
        """The images of several request bodies, made together."""
        asked = [wishes(body) for body in bodies]
        images = iter(self([wish for some in asked for wish in some]))
        return [[next(images) for _ in some] for some in asked]


def answer(body: dict[str, Any], images: Sequence[Image.Image]) -> dict[str, Any]:
    """The JSON answer to `body`: each image as a PNG in base64."""
    rows = []
    for index, (wish, image) in enumerate(zip(wishes(body), images, strict=True)):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=PNG_LEVEL)
        text = base64.b64encode(file.getvalue()).decode("ascii")
        rows.append({"index": index, "seed": wish.seed, "b64_json": text})
    return {"images": rows}

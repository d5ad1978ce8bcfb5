"""What is sent: seeded sequences of requests, the same every time.

A workload's bodies have only fields that any server with this route can know: `class_labels`, `seed`,
`num_inference_steps`, `batch_size`, `output_format`. Those of `edits` are for this service alone.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

__all__ = ["NAMES", "Call", "Source", "Workload", "make_workload"]

MIXED_STEPS: Final = (1, 1, 2, 4)
MIXED_IMAGES: Final = (1, 1, 2, 4)
BULK_IMAGES: Final = 32
BULK_STEPS: Final = 16
BULK_CLIENTS: Final = 2  # so that the next bulk request is there when one ends
EDIT_STEPS: Final = 4
SIDE: Final = 32  # pixels of the pictures that edits send; the server fits them to its model
SEEDS: Final = 2**31


@dataclass(frozen=True, slots=True)
class Call:
    """One request to send. `image_steps` is the work it asks for: images times steps.

    Without `images` an answer is right when it has the `status` that is expected; its body is not looked at.
    """

    kind: str
    path: str
    body: bytes
    images: int
    image_steps: int
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Source:
    """What the requests of a workload are drawn from."""

    classes: int | None = 10  # None: the model has no classes, and requests name none
    model: str | None = None  # None: the server's default model, and requests name none
    seed: int = 0

    def fields(self, rng: random.Random, images: int, steps: int) -> dict[str, Any]:
        """The fields of a request for `images` images of `steps` steps, its class and seed drawn from `rng`."""
        fields: dict[str, Any] = {"seed": rng.randrange(SEEDS), "batch_size": images, "num_inference_steps": steps}
        if self.classes:
            fields["class_labels"] = [rng.randrange(self.classes) for _ in range(images)]
        if self.model is not None:
            fields["model"] = self.model
        return fields | {"output_format": "png"}


Draw = Callable[[Source, random.Random], Call]


@dataclass(frozen=True, slots=True)
class Workload:
    """A sequence of requests, and perhaps another one that keeps the server busy meanwhile."""

    name: str
    source: Source
    draw: Draw
    clients: int  # that saturate a small server in a closed loop
    background: Workload | None = None  # always in a closed loop, by as many clients as it says

    def calls(self) -> Iterator[Call]:
        """The requests from the first on, without end; equal for equal workloads."""
        rng = random.Random(f"{self.name}/{self.source.seed}")  # noqa: S311
        while True:
            yield self.draw(self.source, rng)


def _generation(kind: str, source: Source, rng: random.Random, images: int, steps: int) -> Call:
    body = msgspec.json.encode(source.fields(rng, images, steps))
    return Call(kind, "/v1/generate", body, images, images * steps)


def _single(source: Source, rng: random.Random) -> Call:
    return _generation("single", source, rng, 1, 1)


def _mixed(source: Source, rng: random.Random) -> Call:
    return _generation("mixed", source, rng, rng.choice(MIXED_IMAGES), rng.choice(MIXED_STEPS))


def _bulk(source: Source, rng: random.Random) -> Call:
    return _generation("bulk", source, rng, BULK_IMAGES, BULK_STEPS)


def _picture(rng: random.Random, side: int) -> str:
    """Base64 of a PNG with smooth random colours."""
    from PIL import Image

    few = Image.frombytes("RGB", (4, 4), rng.randbytes(48))
    file = io.BytesIO()
    few.resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _mask(side: int) -> str:
    """Base64 of a PNG whose right half is to be repainted."""
    from PIL import Image

    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 2, 0, side, side))
    file = io.BytesIO()
    mask.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _edit(source: Source, rng: random.Random) -> Call:
    """An edit, or as often a plain generation."""
    kind = rng.choice(("inpaint", "colorize", "super-resolution", "stroke", "denoise", "interpolate"))
    if rng.random() < 0.5:
        return _generation("generate", source, rng, rng.choice(MIXED_IMAGES), rng.choice(MIXED_STEPS))
    images, steps = (1, 1) if kind == "denoise" else (rng.choice(MIXED_IMAGES), EDIT_STEPS)
    if kind == "interpolate":
        images = max(2, images)
    fields = source.fields(rng, images, steps)
    if kind == "interpolate":
        fields |= {"seed_from": fields.pop("seed"), "seed_to": rng.randrange(SEEDS), "frames": fields.pop("batch_size")}
        return Call(kind, "/v1/interpolate", msgspec.json.encode(fields), images, images * steps)
    fields["image"] = _picture(rng, SIDE)
    if kind == "inpaint":
        fields["mask"] = _mask(SIDE)
    elif kind == "super-resolution":
        fields["factor"] = 4
    elif kind == "denoise":
        fields["sigma"] = 0.5
    return Call(kind, f"/v1/edits/{kind}", msgspec.json.encode(fields), images, images * steps)


_KINDS: Final[dict[str, tuple[Draw, int]]] = {
    "singles": (_single, 16),
    "mixed": (_mixed, 16),
    "interactive": (_single, 1),
    "edits": (_edit, 16),
}
NAMES: Final = tuple(_KINDS)


def make_workload(name: str, *, classes: int | None = 10, model: str | None = None, seed: int = 0) -> Workload:
    """One of `NAMES`: `singles` (one image, one step), `mixed` (1, 1, 2, 4 steps and images), `interactive`
    (singles beside bulk requests that never end), `edits` (every edit, and as many plain generations).

    `classes` is how many the model has, None for a model without; `model` is for servers with several.
    """
    source = Source(classes, model, seed)
    draw, clients = _KINDS[name]
    background = Workload("bulk", source, _bulk, BULK_CLIENTS) if name == "interactive" else None
    return Workload(name, source, draw, clients, background)

"""Every operation as a request that is still to be sent: what both clients share."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import quote

import msgspec
from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "EditFields",
    "EditName",
    "GenerateFields",
    "ImageFields",
    "ImageInput",
    "InterpolateFields",
    "Operation",
    "edit",
    "generate",
    "get_image",
    "interpolate",
    "list_models",
    "one_model",
]

OutputFormat = Literal["png", "jpeg", "webp"]
EditName = Literal["inpaint", "colorize", "super-resolution", "stroke", "denoise"]
ImageInput = Image.Image | bytes | str | PathLike[str]
"""A picture: decoded, a file's bytes, or a file's path. Decoded ones are sent as PNG."""


class CommonFields(TypedDict, total=False):
    """Fields of every request for images; what is left out has the service's default."""

    model: str
    class_labels: int | str | Sequence[int | str | None] | None
    num_inference_steps: int
    timesteps: Sequence[int]
    output_format: OutputFormat
    quality: int
    callback_steps: int
    timeout: float


class SeededFields(CommonFields, total=False):
    """Those of requests that make an image for each seed."""

    batch_size: int
    seed: int | Sequence[int | None] | None


class GenerateFields(SeededFields, total=False):
    """Fields of `POST /v1/generate`."""

    latents: npt.NDArray[np.float32]


class EditFields(SeededFields, total=False):
    """Fields of the edits; `factor` is super-resolution's, `strength` stroke's, `sigma` denoise's."""

    fit: Literal["crop", "pad", "exact"]
    factor: int
    strength: float
    sigma: float


class InterpolateFields(CommonFields, total=False):
    """Fields of `POST /v1/interpolate`, its two seeds aside."""

    frames: int


class ImageFields(TypedDict, total=False):
    """What an image URL can say beside model, class and seed."""

    output_format: OutputFormat
    quality: int
    steps: int
    timesteps: Sequence[int]


class Operation(msgspec.Struct, frozen=True):
    """A request that is still to be sent."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    query: dict[str, str] = {}

    def headers(self, accept: str) -> dict[str, str]:
        """The request's own headers."""
        return {"Accept": accept} | ({} if self.body is None else {"Content-Type": "application/json"})

    def content(self) -> bytes | None:
        """The body's JSON."""
        return None if self.body is None else msgspec.json.encode(self.body, enc_hook=_listed)


def generate(fields: Mapping[str, Any]) -> Operation:
    """`POST /v1/generate`; an array of latents becomes base64 of a `.npy` file."""
    body = _plain(fields)
    if body.get("latents") is not None:
        import numpy as np

        file = io.BytesIO()
        np.save(file, np.asarray(body["latents"], dtype="<f4"), allow_pickle=False)
        body["latents"] = file.getvalue()
    return Operation("POST", "/v1/generate", body)


def edit(name: EditName, image: ImageInput, mask: ImageInput | None, fields: Mapping[str, Any]) -> Operation:
    """`POST /v1/edits/{name}`."""
    body = _plain(fields) | {"image": _file(image)}
    if mask is not None:
        body["mask"] = _file(mask)
    return Operation("POST", f"/v1/edits/{name}", body)


def interpolate(seed_from: int, seed_to: int, fields: Mapping[str, Any]) -> Operation:
    """`POST /v1/interpolate`."""
    return Operation("POST", "/v1/interpolate", _plain(fields) | {"seed_from": seed_from, "seed_to": seed_to})


def get_image(
    model: str, class_label: int | str, seed: int, fields: Mapping[str, Any], *, method: Literal["GET", "HEAD"] = "GET"
) -> Operation:
    """`GET /v1/images/...`; `class_label` is an index, a slug or `any`."""
    suffix = fields.get("output_format", "png")
    path = f"/v1/images/{quote(model, safe='@:')}/{quote(str(class_label), safe='')}/{seed}.{suffix}"
    query = {name: str(fields[name]) for name in ("steps", "quality") if name in fields}
    if "timesteps" in fields:
        query["timesteps"] = ",".join(map(str, fields["timesteps"]))
    return Operation(method, path, query=query)


def list_models() -> Operation:
    """`GET /v1/models`."""
    return Operation("GET", "/v1/models")


def one_model(name: str) -> Operation:
    """`GET /v1/models/{model}`."""
    return Operation("GET", f"/v1/models/{quote(name, safe='')}")


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple | range) else value for name, value in fields.items()}


def _listed(value: Any) -> Any:
    """Numbers and arrays of NumPy as Python's."""
    try:
        return value.tolist()
    except AttributeError:
        raise TypeError(f"a {type(value).__name__} is no JSON") from None


def _file(image: ImageInput) -> bytes:
    """The bytes of a picture's file; msgspec makes them base64."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
    return Path(image).read_bytes()

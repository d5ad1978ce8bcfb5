"""What a service answers, typed: msgspec checks it and turns base64 into bytes on the way."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from PIL import Image

from service.client._errors import InvalidAnswer

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "BatchSize",
    "Done",
    "Event",
    "GeneratedImage",
    "Generation",
    "Model",
    "ModelClass",
    "ModelList",
    "Queued",
    "Step",
    "Timings",
    "decode",
    "etag_of",
    "open_image",
]


class Timings(msgspec.Struct, frozen=True):
    """Where the time went, in milliseconds."""

    queue_ms: float
    inference_ms: float
    encode_ms: float
    total_ms: float


class GeneratedImage(msgspec.Struct, frozen=True):
    """One image; `data` is the file as the service sent it. In a stream this is the event of a finished image."""

    index: int
    seed: int
    class_label: int | None
    class_name: str | None
    media_type: str
    width: int
    height: int
    data: bytes = msgspec.field(name="b64_json")
    t: float | None = None  # of an interpolation: 0 is its first seed, 1 its last

    @property
    def image(self) -> Image.Image:
        """The picture, decoded."""
        return open_image(self.data)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the file as the service sent it."""
        Path(path).write_bytes(self.data)

    def __repr__(self) -> str:
        return f"<GeneratedImage {self.width}x{self.height} seed={self.seed} class={self.class_name!r}>"


class Generation(msgspec.Struct, frozen=True):
    """The answer to a request for images."""

    id: str
    created: int
    model: str
    revision: str
    num_inference_steps: int
    timesteps: tuple[int, ...]  # sent back, they repeat the run
    sigmas: tuple[float, ...]
    images: tuple[GeneratedImage, ...]
    timings: Timings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> GeneratedImage:
        return self.images[index]

    def __iter__(self) -> Iterator[GeneratedImage]:
        return iter(self.images)


class Queued(msgspec.Struct, frozen=True):
    """The request is accepted; `position` image-steps were ahead of it."""

    position: int


class Step(msgspec.Struct, frozen=True):
    """What image `index` looks like after `step` of its steps; `data` is a PNG."""

    index: int
    step: int
    num_inference_steps: int
    data: bytes = msgspec.field(name="b64_json")

    @property
    def image(self) -> Image.Image:
        """The preview, decoded."""
        return open_image(self.data)


class Done(msgspec.Struct, frozen=True):
    """Every image has come."""

    timings: Timings


T = TypeVar("T")

Event = Queued | Step | GeneratedImage | Done


class ModelClass(msgspec.Struct, frozen=True):
    """A class of a class-conditional model."""

    index: int
    name: str
    slug: str


class BatchSize(msgspec.Struct, frozen=True):
    """A batch size that the engine uses, and the seconds that a step of it took at its start."""

    size: int
    step_seconds: float


class Model(msgspec.Struct, frozen=True):
    """A served model."""

    id: str
    revision: str
    image_size: int
    channels: int
    class_conditional: bool
    classes: tuple[ModelClass, ...]
    num_train_timesteps: int
    sigma_min: float
    sigma_max: float
    sigma_data: float
    device: str | None
    dtype: str | None
    batch_sizes: tuple[BatchSize, ...]
    license: str | None


class ModelList(msgspec.Struct, frozen=True):
    """Every served model, the default first."""

    data: tuple[Model, ...]


def decode(body: bytes | str, kind: type[T]) -> T:
    """An answer's JSON as `kind`; fields that this client does not know yet are passed over."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidAnswer(f"the answer is no {kind.__name__}: {error}") from None


def open_image(data: bytes) -> Image.Image:
    """A picture from its file, read to the end. Raises InvalidAnswer."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.copy()
    except OSError as error:
        raise InvalidAnswer(f"the answer is no picture: {error}") from None


def etag_of(headers: Mapping[str, str]) -> str:
    """Raises InvalidAnswer without one."""
    try:
        return headers["etag"]
    except KeyError:
        raise InvalidAnswer("the answer has no ETag") from None

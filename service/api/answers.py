"""JSON answers of the routes that make images: documented by pydantic, encoded by msgspec.

msgspec turns `bytes` into base64 on the way.
"""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import Field
from pydantic.json_schema import WithJsonSchema
from typing_extensions import TypedDict

__all__ = ["ClassEntry", "GenerateAnswer", "ImageEntry", "ModelEntry", "ModelList", "SizeEntry", "Timings"]


class Timings(TypedDict):
    """Where the time went, in milliseconds."""

    queue_ms: float
    inference_ms: float
    encode_ms: float
    total_ms: float


class ImageEntry(TypedDict):
    """One image of an answer."""

    index: int
    seed: int
    class_label: int | None
    class_name: str | None
    media_type: str
    width: int
    height: int
    b64_json: Annotated[
        bytes,
        Field(description="The encoded image."),
        WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    ]
    t: NotRequired[Annotated[float, Field(description="Of an interpolation: 0 at `seed_from`, 1 at `seed_to`.")]]


class GenerateAnswer(TypedDict):
    """The JSON answer of `POST /v1/generate`."""

    id: str
    created: Annotated[int, Field(description="Seconds since 1970.")]
    model: str
    revision: str
    num_inference_steps: int
    timesteps: Annotated[list[int], Field(description="The list that, sent back, repeats the run.")]
    sigmas: Annotated[list[float], Field(description="Noise levels in order of visit.")]
    images: list[ImageEntry]
    timings: Timings


class ClassEntry(TypedDict):
    """A class of a class-conditional model."""

    index: int
    name: str
    slug: Annotated[str, Field(description="The class in the URLs of `GET /v1/images`.")]


class SizeEntry(TypedDict):
    """A certified batch size."""

    size: int
    step_seconds: Annotated[float, Field(description="Measured time of one step of it.")]


class ModelEntry(TypedDict):
    """A served model."""

    id: str
    object: str
    created: int
    owned_by: str
    revision: str
    image_size: int
    channels: int
    class_conditional: bool
    classes: list[ClassEntry]
    num_train_timesteps: int
    sigma_min: float
    sigma_max: float
    sigma_data: float
    device: Annotated[str | None, Field(description="Null until the model is ready for the first time.")]
    dtype: str | None
    batch_sizes: list[SizeEntry]
    license: str | None


class ModelList(TypedDict):
    """The answer of `GET /v1/models`, in OpenAI's list shape."""

    object: str
    data: list[ModelEntry]

"""Answers in OpenAI's shape: the list of images, and the events of its image streams.

Beside OpenAI's fields each image says its seed and class, which OpenAI's clients show as extra attributes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from pydantic.json_schema import WithJsonSchema
from typing_extensions import TypedDict

from service.api.answers import ImageEntry, Timings
from service.api.negotiation import OutputFormat
from service.api.openai_errors import error_object
from service.api.planning import Plan
from service.api.streaming import event

__all__ = ["ImagesAnswer", "OpenAIWords", "StreamPrefix", "images_answer", "preview_steps"]

StreamPrefix = Literal["image_generation", "image_edit"]


class TokenDetails(TypedDict):
    """Part of `Usage`."""

    image_tokens: int
    text_tokens: int


class Usage(TypedDict):
    """OpenAI's clients expect it; there are no tokens here."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class OpenAIImage(TypedDict):
    """One image of the answer."""

    b64_json: Annotated[
        bytes,
        Field(description="The encoded image."),
        WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    ]
    seed: int
    class_label: int | None
    class_name: str | None


class ImagesAnswer(TypedDict):
    """The answer of the OpenAI-compatible image routes."""

    created: int
    background: str
    output_format: str
    size: str
    data: list[OpenAIImage]
    usage: Usage
    model: str
    revision: str
    timesteps: list[int]
    timings: Timings


NO_USAGE: Final = Usage(
    input_tokens=0,
    input_tokens_details=TokenDetails(image_tokens=0, text_tokens=0),
    output_tokens=0,
    total_tokens=0,
)


def images_answer(plan: Plan, entries: list[ImageEntry], timings: Timings) -> ImagesAnswer:
    """The JSON answer; `entries` are those of this service's own answer."""
    return ImagesAnswer(
        created=int(time.time()),
        background="opaque",
        output_format=plan.output_format,
        size=_size(plan),
        data=[
            OpenAIImage(
                b64_json=entry["b64_json"],
                seed=entry["seed"],
                class_label=entry["class_label"],
                class_name=entry["class_name"],
            )
            for entry in entries
        ],
        usage=NO_USAGE,
        model=plan.model.name,
        revision=plan.model.revision,
        timesteps=list(plan.timesteps),
        timings=timings,
    )


def preview_steps(partial_images: int, steps: int) -> tuple[list[int], int]:
    """Steps (1-based) of `partial_images` previews, even in a run of `steps`, and the period that meets them all.

    Fewer when there are not as many steps before the last; a period of 0 is none.
    """
    count = min(partial_images, steps - 1)
    wanted = [(i * steps * 2 + count + 1) // (2 * (count + 1)) for i in range(1, count + 1)]
    return wanted, math.gcd(*wanted)


class OpenAIWords:
    """OpenAI's events; an image that is still to come is told of in comments, which its clients pass over."""

    def __init__(self, plan: Plan, prefix: StreamPrefix, previews: list[int] | None) -> None:
        """`previews`: the steps that are shown; None for all that the engine gives."""
        self.preview_format: OutputFormat = plan.output_format
        self._plan = plan
        self._prefix = prefix
        self._previews = previews
        self._shown = [0] * len(plan.samples)

    def wants(self, step: int) -> bool:
        """Whether a preview of this step was asked for."""
        return self._previews is None or step in self._previews

    def queued(self, position: int) -> bytes:
        """A comment: OpenAI has no such event."""
        return b": accepted, %d image-steps ahead\n\n" % position

    def step(self, index: int, step: int, data: bytes) -> bytes:
        """`….partial_image`."""
        partial = self._shown[index] if self._previews is None else self._previews.index(step)
        self._shown[index] += 1
        return self._event("partial_image", index, data, {"partial_image_index": partial, "step": step})

    def image(self, entry: ImageEntry) -> bytes:
        """`….completed`, one for each image."""
        fields = {"usage": NO_USAGE, "class_label": entry["class_label"], "class_name": entry["class_name"]}
        return self._event("completed", entry["index"], entry["b64_json"], fields)

    def done(self, timings: Timings) -> bytes:
        """Nothing: the last `….completed` was the end."""
        return b""

    def error(self, problem: Mapping[str, Any]) -> bytes:
        """`error`, which OpenAI's clients raise."""
        return event("error", {"error": error_object(problem)})

    def _event(self, name: str, index: int, data: bytes, fields: Mapping[str, Any]) -> bytes:
        kind = f"{self._prefix}.{name}"
        body = {
            "type": kind,
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": self._plan.output_format,
            "quality": "auto",
            "size": _size(self._plan),
            **fields,
            "index": index,
            "seed": self._plan.samples[index].seed,
            "b64_json": data,
        }
        return event(kind, body)


def _size(plan: Plan) -> str:
    return f"{plan.model.image_size}x{plan.model.image_size}"

"""What OpenAI's clients send to the image routes, and what it means here.

A field of theirs either has a meaning, or is accepted because leaving it out would mean the same (`quality=auto`),
or is refused by name. Fields of `POST /v1/generate` may be sent beside them (`extra_body`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from pydantic_core import PydanticCustomError

from service.api.edit_schemas import InpaintRequest
from service.api.schemas import GenerateRequest, ImageRequest, all_of, no_default, parse_body
from service.errors import InvalidRequest

__all__ = ["ImageEditsRequest", "ImagesRequest", "OpenAIRequest", "own_request", "parse_openai", "renamed"]

# OpenAI's clients may send null for any of these; it means what leaving the field out means.
NULLABLE: Final = frozenset(
    {
        *("model", "n", "size", "quality", "output_format", "response_format", "stream", "partial_images"),
        *("background", "moderation", "user", "safety_identifier", "output_compression"),
    }
)

# Fields of OpenAI's API that nothing here could honour.
MEANINGLESS: Final = frozenset(
    {"style", "svg", "complexity", "frame_count", "frame_duration_ms", "input_fidelity", "markup"}
)


def _no_other_word(value: object) -> object:
    """Refuses `hd` and the like in one sentence, which the union below would do in two."""
    if isinstance(value, str) and value != "auto":
        raise PydanticCustomError("quality_not_available", "Should be auto, or 1 to 100 for jpeg and webp.")
    return value


class _OpenAIFields(BaseModel):
    """OpenAI's fields."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    prompt: Annotated[
        StrictStr, Field(max_length=512, description="A class name or index; empty, and each image's seed decides.")
    ]
    n: Annotated[
        StrictInt,
        Field(
            ge=1,
            description="How many images, `batch_size` by its OpenAI name; left out, 1.",
            json_schema_extra=no_default,
        ),
    ] = 1
    size: Annotated[
        StrictStr,
        Field(max_length=32, description="`auto`, or the size of the model's pictures such as `64x64`."),
    ] = "auto"
    response_format: Annotated[Literal["b64_json"], Field(description="Images come inside the answer, always.")] = (
        "b64_json"
    )
    quality: Annotated[
        Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=100)],
        BeforeValidator(_no_other_word),
        Field(description="`auto`, or 1 to 100 for `jpeg` and `webp`."),
    ] = "auto"
    output_compression: Annotated[
        StrictInt,
        Field(
            ge=0,
            le=100,
            description="OpenAI's name for a `quality`, of which 1 is the least; left out, 100.",
            json_schema_extra=no_default,
        ),
    ] = 100
    stream: Annotated[StrictBool, Field(description="Answer with server-sent events.")] = False
    partial_images: Annotated[
        StrictInt,
        Field(
            ge=0,
            le=64,
            description="With `stream`: previews of each image, spread evenly before its last step; left out, none.",
            json_schema_extra=no_default,
        ),
    ] = 0
    background: Annotated[Literal["auto", "opaque"], Field(description="Pictures are opaque.")] = "auto"
    moderation: Annotated[Literal["auto", "low"], Field(description="Has no effect.")] = "auto"
    user: Annotated[StrictStr, Field(description="Has no effect.")] = ""
    safety_identifier: Annotated[StrictStr, Field(description="Has no effect.")] = ""


# `quality` is wider than that of the service's own requests, on purpose.
class ImagesRequest(_OpenAIFields, GenerateRequest):  # type: ignore[misc]
    """Body of `POST /v1/images/generations`: OpenAI's fields, and those of `POST /v1/generate`."""


class ImageEditsRequest(_OpenAIFields, InpaintRequest):  # type: ignore[misc]
    """Fields of `POST /v1/images/edits`: OpenAI's, and those of `POST /v1/edits/inpaint`."""


OpenAIRequest = ImagesRequest | ImageEditsRequest
_Request = TypeVar("_Request", bound=OpenAIRequest)


def parse_openai(kind: type[_Request], body: Mapping[str, Any]) -> _Request:
    """Validates a body. Raises one `InvalidRequest` that carries all that is wrong with it."""
    meaningless = [
        InvalidRequest("This has no meaning here.", loc=("body", name), code="unsupported_parameter")
        for name in sorted(MEANINGLESS & body.keys())
        if body[name] is not None
    ]
    known = {
        name: value
        for name, value in body.items()
        if name not in MEANINGLESS and not (value is None and name in NULLABLE)
    }
    try:
        parsed = parse_body(kind, known)
        _check(parsed)
    except InvalidRequest as error:
        raise all_of([*meaningless, *error.errors]) from None
    if meaningless:
        raise all_of(meaningless)
    return parsed


def _check(body: OpenAIRequest) -> None:
    given = body.model_fields_set
    clashes = [
        (("n", "batch_size"), {"n", "batch_size"} <= given),
        (("prompt", "class_labels"), bool(body.prompt.strip()) and body.class_labels is not None),
        (("output_compression", "quality"), "output_compression" in given and body.quality != "auto"),
        (("partial_images", "callback_steps"), {"partial_images", "callback_steps"} <= given),
    ]
    errors = [
        InvalidRequest(f"Give either {one} or {other}, not both.", loc=("body", one), code="conflict")
        for (one, other), clash in clashes
        if clash
    ]
    if body.partial_images and not body.stream:
        errors.append(InvalidRequest("Only with stream.", loc=("body", "partial_images"), code="only_with_stream"))
    if errors:
        raise all_of(errors)


def own_request(body: OpenAIRequest, kind: type[ImageRequest]) -> dict[str, Any]:
    """The same request with this service's own fields, those left out that were left out."""
    given = body.model_fields_set
    own = {name: getattr(body, name) for name in kind.model_fields if name in given}
    if body.quality == "auto":
        own.pop("quality", None)
    if "output_compression" in given:
        own["quality"] = max(1, body.output_compression)
    if "n" in given:
        own["batch_size"] = body.n
    if body.prompt.strip():
        own["class_labels"] = body.prompt.strip()
    return own


def renamed(error: InvalidRequest, body: OpenAIRequest) -> InvalidRequest:
    """An error of the service's own fields, under the names that this request used."""
    given = body.model_fields_set
    names = {}
    if "n" in given:
        names["batch_size"] = "n"
    if body.prompt.strip():
        names["class_labels"] = "prompt"
    if "output_compression" in given:
        names["quality"] = "output_compression"

    def rename(one: InvalidRequest) -> InvalidRequest:
        loc = tuple(names.get(part, part) if isinstance(part, str) else part for part in one.loc)
        # Only a name has an underscore: the `quality` of a sentence may be the plain word.
        message = re.sub(r"[a-z]+_[a-z_]+", lambda word: names.get(word[0], word[0]), one.message)
        return InvalidRequest(message, loc=loc, code=one.code)

    return all_of([rename(one) for one in error.errors])

"""Bodies of the routes that make images: pydantic models in strict mode.

What it cannot take is refused with the field's name, never converted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
)
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from service.api.negotiation import OutputFormat
from service.engine.request import MAX_SEED
from service.errors import InvalidRequest

__all__ = [
    "GenerateRequest",
    "ImageRequest",
    "Seed",
    "SeededRequest",
    "all_of",
    "no_default",
    "parse_body",
    "shown",
]

_MAX_ITEMS: Final = 4096  # of any list; a longer one is refused before its items cost anything
_MAX_ERRORS: Final = 16  # shown in one answer


def _not_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("null_forbidden", "Input should not be null; leave the field out instead.")
    return value


def _not_too_long(value: object) -> object:
    if isinstance(value, list) and len(value) > _MAX_ITEMS:
        raise PydanticCustomError("too_long", f"List should have at most {_MAX_ITEMS} items.")
    return value


def _kind(value: object) -> str | None:
    """Which form of `class_labels` or `seed` a value has."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "list" if len(value) <= _MAX_ITEMS else None
    if isinstance(value, str):
        return "name"
    return "number" if isinstance(value, int) and not isinstance(value, bool) else None


def no_default(schema: dict[str, Any]) -> None:
    """Leaves out the default of a field that may not be sent whenever it may be left out, or that would be null."""
    schema.pop("default", None)


_Unset = SkipJsonSchema[None]  # the value of a field that was left out and has no fixed default
_NotNull = BeforeValidator(_not_null)

_Index = Annotated[StrictInt, Field(ge=0)]
_Count = Annotated[StrictInt, Field(ge=1)]
_ClassName = Annotated[StrictStr, Field(min_length=1, max_length=512)]
Seed = Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]
_Null = Annotated[None, Tag("null")]

_ClassLabel = Annotated[
    _Null | Annotated[_Index, Tag("number")] | Annotated[_ClassName, Tag("name")],
    Discriminator(
        _kind,
        custom_error_type="class_label_type",
        custom_error_message="Input should be null, a class index or a class name.",
    ),
]
_ClassLabels = Annotated[
    _Null
    | Annotated[_Index, Tag("number")]
    | Annotated[_ClassName, Tag("name")]
    | Annotated[list[_ClassLabel], Tag("list")],
    Discriminator(
        _kind,
        custom_error_type="class_labels_type",
        custom_error_message="Input should be null, a class index, a class name or a list of them.",
    ),
]
_SeedItem = Annotated[
    _Null | Annotated[Seed, Tag("number")],
    Discriminator(_kind, custom_error_type="seed_type", custom_error_message="Input should be null or an integer."),
]
_SeedOrSeeds = Annotated[
    _Null | Annotated[Seed, Tag("number")] | Annotated[list[_SeedItem], Tag("list")],
    Discriminator(
        _kind,
        custom_error_type="seed_type",
        custom_error_message="Input should be null, an integer or a list of them.",
    ),
]


class _Seeds(BaseModel):
    """How many images, and their seeds."""

    batch_size: Annotated[
        StrictInt, Field(ge=1, description="Images to make; left out, 1.", json_schema_extra=no_default)
    ] = 1
    seed: Annotated[
        _SeedOrSeeds,
        Field(
            description="Image `i` uses `seed + i`, or `seed[i]` of a list of `batch_size` of them. "
            "`null` draws one at random; the seed used is always returned."
        ),
    ] = None


class ImageRequest(BaseModel):
    """What every request for images can say."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    model: Annotated[
        StrictStr | _Unset,
        _NotNull,
        Field(
            description="A name from `GET /v1/models`; left out, the default model.",
            json_schema_extra=no_default,
        ),
    ] = None
    class_labels: Annotated[
        _ClassLabels,
        Field(
            description="Class index or class name (case-insensitive), or a list of `batch_size` of them; "
            "one value serves the whole batch. `null` draws a class from each image's seed."
        ),
    ] = None
    num_inference_steps: Annotated[
        StrictInt,
        Field(
            ge=1,
            description="Evenly spaced steps, as diffusers spaces them; left out, 1.",
            json_schema_extra=no_default,
        ),
    ] = 1
    steps: Annotated[
        _Count | _Unset,
        _NotNull,
        Field(description="Another name for `num_inference_steps`.", json_schema_extra=no_default),
    ] = None
    timesteps: Annotated[
        Annotated[list[_Index], Field(min_length=1, max_length=_MAX_ITEMS)] | None,
        BeforeValidator(_not_too_long),
        Field(description="Explicit steps: strictly descending indices into the training grid, e.g. `[22, 0]`."),
    ] = None
    output_format: Annotated[
        OutputFormat,
        Field(description="Encoding of each image; left out, `png`.", json_schema_extra=no_default),
    ] = "png"
    quality: Annotated[
        Annotated[StrictInt, Field(ge=1, le=100)] | _Unset,
        _NotNull,
        Field(description="Of `jpeg` and `webp` only.", json_schema_extra=no_default),
    ] = None
    callback_steps: Annotated[
        StrictInt,
        Field(
            ge=1,
            description="With an event stream: a preview every so many steps; left out, 1.",
            json_schema_extra=no_default,
        ),
    ] = 1
    timeout: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | _Unset,
        _NotNull,
        Field(
            description="Seconds until the request's deadline, queueing included; at most, and left out, "
            "the server's `request_timeout`.",
            json_schema_extra=no_default,
        ),
    ] = None

    @property
    def wanted_format(self) -> OutputFormat | None:
        """`output_format` when the client gave it."""
        return self.output_format if "output_format" in self.model_fields_set else None


class SeededRequest(ImageRequest, _Seeds):
    """One that makes an image for each of its seeds."""


class GenerateRequest(SeededRequest):
    """What to make. Every field may be left out: `{}` asks for one image of the default model."""

    latents: Annotated[
        StrictStr | None,
        WithJsonSchema({"anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}]}),
        Field(
            description="Base64 of a `.npy` float32 array `[batch_size, C, H, W]` of unit variance, in "
            "place of the first noise draw."
        ),
    ] = None


_Model = TypeVar("_Model", bound=BaseModel)


def parse_body(kind: type[_Model], body: Mapping[str, Any]) -> _Model:
    """Validates a JSON object. Raises one `InvalidRequest` that carries all that is wrong with it."""
    known = {name: value for name, value in body.items() if name in kind.model_fields}
    errors = [
        InvalidRequest("Unknown field.", loc=("body", *shown(name)), code="extra_forbidden")
        for name in list(body)[: len(known) + _MAX_ERRORS]
        if name not in known
    ]
    try:
        parsed = kind.model_validate(known)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        # `none_required` is the other half of a union with `_Unset`, which names no field of its own.
        errors += [_as_invalid(details) for details in found if details["type"] != "none_required"]
    if errors:
        raise all_of(errors)
    return parsed


def all_of(errors: Sequence[InvalidRequest]) -> InvalidRequest:
    """One error that carries all of `errors` (at least one), up to a number that a person would read."""
    first, *others = errors[:_MAX_ERRORS]
    return InvalidRequest(first.message, loc=first.loc, code=first.code, others=tuple(others))


def shown(name: str) -> tuple[str, ...]:
    """The name of an unknown field where it looks like one; never a way to send input back."""
    return (name,) if len(name) <= 64 and name.isascii() and name.isidentifier() else ()


def _as_invalid(details: ErrorDetails) -> InvalidRequest:
    field, *rest = details["loc"] or (None,)
    # Below the field only list positions are the client's; strings are the tags of our unions.
    path = () if field is None else (field, *(part for part in rest if isinstance(part, int)))
    return InvalidRequest(details["msg"].removesuffix(".") + ".", loc=("body", *path), code=details["type"])

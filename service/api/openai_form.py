"""Reads the multipart body of OpenAI's edits: files, and scalars that arrive as text.

OpenAI's clients write a list as several fields of one name with `[]` behind it. Text becomes a number or a truth
value here alone, and only where the field is one; what is no number stays text, for the validation to refuse.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from starlette.datastructures import UploadFile
from starlette.requests import Request

from service.api.multipart import read_form
from service.api.problems import ProblemError
from service.api.schemas import all_of, shown
from service.errors import InvalidRequest

__all__ = ["OpenAIForm", "read_openai_form"]

INTEGERS: Final = frozenset(
    {
        *("n", "partial_images", "output_compression", "batch_size", "num_inference_steps", "steps"),
        *("timesteps", "callback_steps", "seed"),
    }
)
INTEGERS_OR_WORDS: Final = frozenset({"quality", "class_labels"})
FLOATS: Final = frozenset({"timeout"})
TRUTHS: Final = {"true": True, "false": False}
FILES: Final = frozenset({"image", "mask"})
LISTS: Final = frozenset({"timesteps", "seed", "class_labels"})  # may be, and stand once for each item then

INTEGER: Final = re.compile(r"-?[0-9]{1,32}", re.ASCII)
NUMBER: Final = re.compile(r"-?[0-9]{1,32}(\.[0-9]{1,32})?", re.ASCII)


class OpenAIForm(msgspec.Struct, frozen=True):
    """The fields as a JSON body would have them, and the files."""

    fields: dict[str, Any]
    image: bytes
    mask: bytes | None


async def read_openai_form(request: Request) -> OpenAIForm:
    """The body. Raises `ProblemError` (400, 408, 413, 415) or `InvalidRequest`."""
    kinds = [value.partition(";")[0].strip().lower() for value in request.headers.getlist("content-type")]
    if kinds != ["multipart/form-data"]:
        detail = "Send the body as multipart/form-data."
        raise ProblemError("unsupported-media-type", detail, headers={"Accept-Post": "multipart/form-data"})
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    errors: list[InvalidRequest] = []
    async with read_form(request) as parts:
        for raw_name, value in parts:
            name = raw_name.removesuffix("[]")
            if name in FILES:
                if not isinstance(value, UploadFile):
                    errors.append(_wrong(name, "file_expected", "Should be a file: a part with a filename."))
                elif name in files:
                    errors.append(_wrong(name, "too_many_files", "One is all that an edit takes here."))
                else:
                    files[name] = await value.read()
            elif isinstance(value, UploadFile):
                errors.append(_wrong(name, "extra_forbidden", "No such file."))
            elif raw_name != name:
                fields.setdefault(name, [])
                if isinstance(fields[name], list):
                    fields[name].append(_coerced(name, value))
                else:
                    errors.append(_wrong(name, "duplicate_key", "The field stands twice."))
            elif name not in fields:
                found = _coerced(name, value)
                fields[name] = [found] if name == "timesteps" and found is not None else found
            elif name in LISTS:
                before = fields[name] if isinstance(fields[name], list) else [fields[name]]
                fields[name] = [*before, _coerced(name, value)]
            else:
                errors.append(_wrong(name, "duplicate_key", "The field stands twice."))
    if "image" not in files and not any(error.loc[-1] == "image" for error in errors):
        errors.append(_wrong("image", "missing", "Field required."))
    if errors:
        raise all_of(errors)
    return OpenAIForm(fields, files["image"], files.get("mask"))


def _coerced(name: str, text: str) -> Any:
    """A field's value; an empty one is null, as OpenAI's clients write it, but for an empty prompt."""
    if not text:
        return "" if name == "prompt" else None
    if name == "stream":
        return TRUTHS.get(text, text)
    if (name in INTEGERS or name in INTEGERS_OR_WORDS) and INTEGER.fullmatch(text):
        return int(text)
    if name in FLOATS and NUMBER.fullmatch(text):
        return float(text)
    return text


def _wrong(name: str, code: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, loc=("body", *shown(name)), code=code)

"""Reads the body of an edit: `multipart/form-data` with files, or JSON with the files in base64.

Both come to the same: a JSON object of fields, and the bytes of `image` and `mask`. What stands twice, or is not
known, is refused with its name.
"""

from __future__ import annotations

import binascii
from typing import Any, Final

import msgspec
from starlette.datastructures import UploadFile
from starlette.requests import Request

from service.api.context import Context
from service.api.multipart import MAX_FIELD, read_form
from service.api.problems import ProblemError
from service.api.schemas import all_of, shown
from service.api.strict_json import parse_object, read_json
from service.errors import InvalidRequest

__all__ = ["EditBody", "read_edit_body"]

_ACCEPTED: Final = "multipart/form-data, application/json"


class EditBody(msgspec.Struct, frozen=True):
    """The JSON object and the files by name."""

    fields: dict[str, Any]
    files: dict[str, bytes]

    @property
    def image(self) -> bytes:
        """The picture. Raises `InvalidRequest` without one."""
        if "image" not in self.files:
            raise InvalidRequest("Field required.", loc=("body", "image"), code="missing")
        return self.files["image"]


async def read_edit_body(request: Request, context: Context, *names: str) -> EditBody:
    """The body with its files, which may be those of `names`.

    Raises `ProblemError` (400, 408, 413, 415) or `InvalidRequest`.
    """
    content_types = request.headers.getlist("content-type")
    kind = content_types[0].partition(";")[0].strip().lower() if len(content_types) == 1 else ""
    if kind == "multipart/form-data":
        return await _from_multipart(request, names)
    if kind != "application/json":
        detail = "Send the body as multipart/form-data, or as application/json in UTF-8."
        raise ProblemError("unsupported-media-type", detail, headers={"Accept-Post": _ACCEPTED})
    fields = await read_json(request)
    encoded = {name: fields.pop(name) for name in names if name in fields}
    return EditBody(fields, await context.renderer.call(_decoded, encoded))


async def _from_multipart(request: Request, names: tuple[str, ...]) -> EditBody:
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    errors: list[InvalidRequest] = []
    seen: set[str] = set()
    async with read_form(request) as parts:
        for name, value in parts:
            if name not in (*names, "request"):
                errors.append(_wrong(shown(name), "extra_forbidden", "Unknown field."))
            elif name in seen:
                errors.append(_wrong((name,), "duplicate_key", "The field stands twice."))
            elif name == "request":
                fields = _object(await value.read(MAX_FIELD + 1) if isinstance(value, UploadFile) else value.encode())
            elif isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                errors.append(_wrong((name,), "file_expected", "Should be a file: a part with a filename."))
            seen.add(name)
    if errors:
        raise all_of(errors)
    return EditBody(fields, files)


def _object(data: bytes) -> dict[str, Any]:
    """The field `request`, which is to a form what the body is to a request of JSON."""
    if len(data) > MAX_FIELD:
        raise _wrong(("request",), "too_long", f"Should have at most {MAX_FIELD} bytes.")
    try:
        return parse_object(data)
    except ProblemError as problem:
        raise _wrong(("request",), "json_invalid", problem.detail.replace("The body", "The field")) from None
    except InvalidRequest as error:
        if error.loc != ("body",):
            raise
        raise _wrong(("request",), error.code, error.message.replace("The body", "The field")) from None


def _decoded(encoded: dict[str, object]) -> dict[str, bytes]:
    """Files from base64; a null mask is none."""
    files: dict[str, bytes] = {}
    errors: list[InvalidRequest] = []
    for name, text in encoded.items():
        if text is None and name != "image":
            continue
        if not isinstance(text, str):
            errors.append(_wrong((name,), "string_type", "Input should be a string: base64 of a file."))
            continue
        try:
            files[name] = binascii.a2b_base64(text, strict_mode=True)
        except ValueError:  # binascii.Error, and characters that are not ASCII
            errors.append(_wrong((name,), "base64", "Should be base64 of a file."))
    if errors:
        raise all_of(errors)
    return files


def _wrong(path: tuple[str, ...], code: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, loc=("body", *path), code=code)

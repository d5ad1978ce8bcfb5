"""What the API reference says of the edits: both forms of their bodies, with examples."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

__all__ = ["edit_body_schema", "json_body_schema"]

_DESCRIPTIONS: Final = {
    "image": "A PNG, JPEG or WebP file: one frame, at most 25 million pixels. Its EXIF orientation is applied, "
    "transparency is composited on white, metadata is dropped.",
    "mask": "A PNG, JPEG or WebP file: what is white (>= 128) is repainted. Left out, the transparent pixels of "
    "`image` are.",
}
_NOISY: Final = " Or a `.npy` file, float32 `[C, H, W]` in [-1, 1] scale, taken as already noisy."
# A 2 x 2 picture, so that an example can be sent as it is.
_PICTURE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAF0lEQVR42mP8v8DGluEwQ9SJqF8f7gAALLMHHxQUGy8AAAAASUVORK5CYII="
)


def json_body_schema(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """The request body of a route that takes JSON only, for `openapi_extra`."""
    schema = model.model_json_schema()
    content = {"application/json": {"schema": schema, "examples": {"one": {"value": example}}}}
    return {"requestBody": {"required": True, "content": content}}


def edit_body_schema(
    model: type[BaseModel], example: dict[str, Any], *files: str, required: tuple[str, ...] = ("image",)
) -> dict[str, Any]:
    """The request body of an edit, for `openapi_extra`; `files` are the names of its files."""
    fields = model.model_json_schema()
    base64 = {
        name: {"type": "string", "contentEncoding": "base64", "description": _said(model, name)} for name in files
    }
    binary = {name: {"type": "string", "format": "binary", "description": _said(model, name)} for name in files}
    in_json = {
        **fields,
        "properties": {**base64, **fields["properties"]},
        "required": [*required, *fields.get("required", ())],
    }
    needs = [*required, *(["request"] if fields.get("required") else ())]
    multipart = {
        "type": "object",
        "required": needs,
        "additionalProperties": False,
        "properties": {
            **binary,
            "request": {**fields, "description": "The other fields, as JSON.", "example": example},
        },
    }
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": multipart,
                    "encoding": {"request": {"contentType": "application/json"}},
                },
                "application/json": {
                    "schema": in_json,
                    "examples": {"one": {"value": {**dict.fromkeys(files, _PICTURE), **example}}},
                },
            },
        }
    }


def _said(model: type[BaseModel], name: str) -> str:
    return _DESCRIPTIONS[name] + (_NOISY if model.__name__ == "DenoiseRequest" else "")

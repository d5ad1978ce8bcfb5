"""Reads a `multipart/form-data` body, to its end: one that breaks off would lose its last part unnoticed.

The limits are for hostile bodies. They are far above what any route takes, so that a part too many is refused by its
name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.api.problems import ProblemError
from service.api.schemas import shown
from service.errors import InvalidRequest

__all__ = ["MAX_FIELD", "read_form"]

MAX_FILES: Final = 32
MAX_FIELDS: Final = 1000
MAX_FIELD: Final = 2**16  # bytes of a part that is no file


class _WholeForm(MultiPartParser):
    """Notes whether the closing boundary came, and refuses text by the name of its part."""

    ended = False

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Bounds text."""
        part = self._current_part
        if part.file is None and len(part.data) + end - start > MAX_FIELD:
            message = f"Should have at most {MAX_FIELD} bytes."
            raise InvalidRequest(message, loc=("body", *shown(part.field_name)), code="too_long")
        super().on_part_data(data, start, end)

    def on_part_end(self) -> None:
        """Takes text as UTF-8 or not at all; Starlette would take other bytes for Latin-1."""
        part = self._current_part
        if part.file is None:
            try:
                part.data.decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidRequest("Not UTF-8.", loc=("body", *shown(part.field_name)), code="not_utf8") from None
        super().on_part_end()

    def on_end(self) -> None:
        """The closing boundary."""
        self.ended = True


@asynccontextmanager
async def read_form(request: Request) -> AsyncIterator[list[tuple[str, str | UploadFile]]]:
    """The parts in order; their files live as long as the context.

    Raises `ProblemError` (400, 408, 413) or `InvalidRequest`.
    """
    async with aclosing(request.stream()) as stream:
        parser = _WholeForm(request.headers, stream, max_files=MAX_FILES, max_fields=MAX_FIELDS)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise ProblemError("bad-request", error.message) from None
    try:
        if not parser.ended:
            raise ProblemError("bad-request", "The form breaks off: its closing boundary is missing.")
        yield form.multi_items()
    finally:
        await form.close()

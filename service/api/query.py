"""Query strings are checked as strictly as bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from service.api.schemas import all_of
from service.errors import InvalidRequest

__all__ = ["query_integer", "query_integers", "read_query"]

_INTEGER: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
_MAX_ITEMS: Final = 4096


def read_query(request: Request, *allowed: str) -> dict[str, str]:
    """The query's parameters. Raises `InvalidRequest` for each that is unknown or stands twice."""
    found: dict[str, str] = {}
    wrong: list[InvalidRequest] = []
    for name, value in request.query_params.multi_items():
        if name not in allowed:
            wrong.append(InvalidRequest("Unknown parameter", loc=("query", name), code="unknown_parameter"))
        elif name in found:
            wrong.append(InvalidRequest("Given twice", loc=("query", name), code="repeated_parameter"))
        found[name] = value
    if wrong:
        raise all_of(wrong)
    return found


def query_integer(query: Mapping[str, str], name: str) -> int | None:
    """A non-negative integer in decimal digits, or None when it is not given. Raises `InvalidRequest`."""
    text = query.get(name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text):
        raise InvalidRequest("Should be an integer in decimal digits", loc=("query", name), code="int_parsing")
    return int(text)


def query_integers(query: Mapping[str, str], name: str) -> list[int] | None:
    """Non-negative integers between commas, or None when not given. Raises `InvalidRequest`."""
    text = query.get(name)
    if text is None:
        return None
    parts = text.split(",", _MAX_ITEMS)
    if len(parts) > _MAX_ITEMS or not all(_INTEGER.fullmatch(part) for part in parts):
        raise InvalidRequest(
            "Should be integers in decimal digits, separated by commas", loc=("query", name), code="int_parsing"
        )
    return [int(part) for part in parts]

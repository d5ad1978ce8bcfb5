"""Reads a JSON body strictly: what is ambiguous or no JSON is refused, and hostile bodies cost little.

Python's parser takes `NaN`, keeps the last of two equal keys, turns `1e400` into infinity and lets lone
surrogates through, which break the answer later. Order matters here: the cheap scans that run at the speed of
`memchr` come before anything that builds an object for each element.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from starlette.requests import Request

from service.api.problems import ProblemError
from service.errors import InvalidRequest

__all__ = ["MAX_DEPTH", "MAX_ELEMENTS", "parse_object", "read_json"]

MAX_DEPTH: Final = 16
MAX_ELEMENTS: Final = 16_384  # commas, colons and opening brackets; a usual body has a few dozen
MAX_DIGITS: Final = 32  # of an integer
BODY: Final = ("body",)


async def read_json(request: Request) -> dict[str, Any]:
    """The request's body as an object.

    Raises `ProblemError` (400 for what is no JSON, 415 for another content type, 408 and 413 from the body's
    limits) or `InvalidRequest` with the place of what is JSON but not acceptable.
    """
    require_json(request.headers.getlist("content-type"))
    return parse_object(await request.body())


def require_json(content_types: list[str]) -> None:
    """Refuses every content type but `application/json`, with no charset or with UTF-8."""
    name, _, rest = content_types[0].partition(";") if len(content_types) == 1 else ("", "", "")
    parameters = [part.strip().lower() for part in rest.split(";") if part.strip()]
    if name.strip().lower() == "application/json" and all(
        part in ("charset=utf-8", 'charset="utf-8"') for part in parameters
    ):
        return
    raise ProblemError(
        "unsupported-media-type",
        "Send the body as Content-Type: application/json, in UTF-8.",
        headers={"Accept-Post": "application/json"},
    )


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object from its bytes; see `read_json` for the errors."""
    if not body.strip(b" \t\r\n"):
        raise ProblemError("bad-request", "The body is empty; send a JSON object.")
    if body.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ProblemError("bad-request", "The body starts with a byte-order mark; send plain UTF-8.")
    # Counts what stands inside strings too: only a hostile body comes near the limit.
    if len(body) - len(body.translate(None, b",:[{")) > MAX_ELEMENTS:
        raise InvalidRequest("The body has too many elements.", loc=BODY, code="too_many_elements")
    try:
        value = _decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise ProblemError("bad-request", "The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ProblemError("bad-request", f"The body is not JSON: it breaks at {place}.") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", loc=BODY, code="object_expected")
    _check(value)
    return value


class _Repeating(dict[str, Any]):
    """An object in which a key stood twice, until its place in the body is known."""

    repeated: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    marked = _Repeating(found)
    marked.repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return marked


def _constant(name: str) -> NoReturn:
    raise ProblemError("bad-request", f"The body is not JSON: {name.lstrip('-')} is no JSON number.")


def _integer(digits: str) -> int | float:
    # Turning digits into a number takes the square of their count; the infinite is refused with its place.
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


_decode = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer).decode


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body is nested deeper than {MAX_DEPTH}.", loc=BODY, code="too_deep")


def _check(body: dict[str, Any]) -> None:
    """Walks everything once, without recursion: depth, repeated keys, infinite numbers, lone surrogates."""
    todo: list[tuple[tuple[str | int, ...], dict[str, Any] | list[Any]]] = [(BODY, body)]
    while todo:
        loc, container = todo.pop()
        if len(loc) > MAX_DEPTH:
            raise _too_deep()
        if isinstance(container, _Repeating):
            raise InvalidRequest("The key stands twice.", loc=(*loc, container.repeated), code="duplicate_key")
        items: Iterable[tuple[str | int, Any]]
        if isinstance(container, dict):
            for key in container:
                _check_text(key, loc)
            items = container.items()
        else:
            items = enumerate(container)
        for part, value in items:
            if isinstance(value, str):
                if not value.isascii():  # known to the string, so that long ASCII ones cost nothing
                    _check_text(value, (*loc, part))
            elif isinstance(value, float):
                if not math.isfinite(value):
                    raise InvalidRequest("The number is out of range.", loc=(*loc, part), code="number_too_large")
            elif isinstance(value, dict | list):
                todo.append(((*loc, part), value))


def _check_text(text: str, loc: tuple[str | int, ...]) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest("A string holds half a surrogate pair.", loc=loc, code="lone_surrogate") from None

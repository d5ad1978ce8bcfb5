"""Chooses the form of an answer from `Accept` (RFC 9110, section 12.5.1), before any work is done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, Literal, get_args

import msgspec

__all__ = ["IMAGE_TYPES", "AnswerForm", "Choice", "NotAcceptable", "OutputFormat", "negotiate"]

OutputFormat = Literal["png", "jpeg", "webp"]

IMAGE_TYPES: Final[dict[OutputFormat, str]] = {name: f"image/{name}" for name in get_args(OutputFormat)}


class AnswerForm(Enum):
    """The forms of an answer with images, in the order that decides among equal q values."""

    JSON = "application/json"
    IMAGE = "image/*"
    MULTIPART = "multipart/mixed"
    ZIP = "application/zip"
    NPY = "application/x-npy"
    EVENTS = "text/event-stream"


class Choice(msgspec.Struct, frozen=True):
    """The form of the answer and the encoding of the images in it."""

    form: AnswerForm
    output_format: OutputFormat


class NotAcceptable(Exception):
    """Nothing that `Accept` allows can be given: 406. `available` are the media types there are."""

    def __init__(self, available: Sequence[str]) -> None:
        super().__init__("Nothing that the Accept header allows fits this request.")
        self.available = tuple(available)


_MAX_LENGTH: Final = 8192  # characters of the header that are looked at; browsers send about 150
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)  # an unterminated one reaches to the end
_MEDIA_TYPE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:/([!#$%&'*+.^_`|~0-9A-Za-z-]+))?")
_Q_VALUE = re.compile(r"(?:0(?:\.[0-9]*)?|\.[0-9]+|1(?:\.0*)?)")


def _parse(header: str) -> dict[tuple[str, str], float]:
    """q of each media range `(type, subtype)`, lower case. What is no media range is passed over."""
    ranges: dict[tuple[str, str], float] = {}
    for element in _QUOTED.sub("", header[:_MAX_LENGTH]).split(","):
        media_type, *parameters = (part.strip(" \t") for part in element.split(";"))
        match = _MEDIA_TYPE.fullmatch(media_type)
        if match is None:
            continue
        type_, subtype = match[1].lower(), (match[2] or "").lower()
        if type_ == "*":
            if subtype not in ("", "*"):
                continue
            subtype = "*"  # a lone `*` is what old Java clients send for `*/*`
        q = _weight(parameters)
        if subtype and q is not None:
            ranges[type_, subtype] = max(q, ranges.get((type_, subtype), 0.0))
    return ranges


def _weight(parameters: Iterable[str]) -> float | None:
    """The q among a range's parameters, 1 without one, None when it is not a weight."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip(" \t").lower() == "q":
            value = value.strip(" \t")
            return float(value) if _Q_VALUE.fullmatch(value) else None
    return 1.0


def _quality(ranges: dict[tuple[str, str], float], media_type: str) -> float:
    """q of a media type: that of the most specific range that matches it; 0 when none does."""
    type_, _, subtype = media_type.partition("/")
    for range_ in ((type_, subtype), (type_, "*"), ("*", "*")):
        if range_ in ranges:
            return ranges[range_]
    return 0.0


def negotiate(
    accept: str | None, output_format: OutputFormat | None, forms: Sequence[AnswerForm] = tuple(AnswerForm)
) -> Choice:
    """The answer's form: highest q first, among equals the order of `forms`.

    `accept` is the header's value (several joined by commas), None or blank when there is none.
    `output_format` is what the request asks for, None when it leaves it open; then an explicit image type
    decides, and `png` is the default. Raises `NotAcceptable`.
    """
    default: OutputFormat = output_format or "png"
    images = [default] if output_format else list(IMAGE_TYPES)
    offers: list[tuple[str, Choice]] = []
    for form in forms:
        if form is AnswerForm.IMAGE:
            offers += [(IMAGE_TYPES[name], Choice(form, name)) for name in images]
        else:
            offers.append((form.value, Choice(form, default)))
    if accept is None or not accept.strip():
        return offers[0][1]
    ranges = _parse(accept)
    ranked = [(_quality(ranges, media_type), choice) for media_type, choice in offers]
    q, choice = max(ranked, key=lambda offer: offer[0])  # the first of equals
    if q <= 0:
        raise NotAcceptable([media_type for media_type, _ in offers])
    return choice

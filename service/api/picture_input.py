"""A client's picture on its way in: what is asked of it, and what comes back.

It is never decoded in this process, see `picture_input_pool`; only its first bytes are looked at here. What the
messages between the two processes hold is here too.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "Fit",
    "Order",
    "Picture",
    "Refusal",
    "Use",
    "format_of",
]

MAX_PIXELS: Final = 25_000_000  # 100 MB at four bytes each; a phone's camera has 12 million
MAX_SIDE: Final = 16_384
FORMATS: Final = ("PNG", "JPEG", "WEBP")  # in Pillow's words

Fit = Literal["crop", "pad", "exact"]

Use = Literal[
    "picture",  # colours, with transparency composited on white
    "cutout",  # colours as they are, and a mask: 1 where they are transparent
    "mask",  # a mask: 1 where it is white
    "transparency",  # a mask: 1 where it is transparent
]


class Order(msgspec.Struct, frozen=True):
    """One encoded picture, and what is to be made of it: a square of `side`, or of `small_side` if it is that."""

    data: bytes
    use: Use
    fit: Fit
    side: int
    channels: int  # 1 or 3
    small_side: int = 0  # 0: none; else a picture of exactly this side is left as small as it is


class Picture(msgspec.Struct, frozen=True, tag=True):
    """A square picture, C order."""

    side: int
    pixels: bytes = b""  # uint8 [side, side, C]; empty for a mask
    mask: bytes = b""  # uint8 [side, side] of 0 and 1; empty without one


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why there is no picture; nothing of the input is in it."""

    code: str
    message: str


UNREADABLE: Final = Refusal("image_unreadable", "The picture could not be read within the memory and time it may take.")
UNKNOWN: Final = Refusal("image_format", "Should be a PNG, JPEG or WebP file.")


def format_of(data: bytes) -> str | None:
    """The format that a file's first bytes announce, None for one that is not accepted."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return None

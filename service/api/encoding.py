"""Turns finished pixels into files: PNG, JPEG, WebP, a contact sheet of several.

Everything here is pure and blocking; what takes longer than a millisecond `service.api.rendering` runs in threads.
The same pixels, metadata, format and quality give the same bytes, alone or in a batch, as long as the libraries of
`encoder_versions` do not change.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from typing import Final

import msgspec
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from service.api.negotiation import OutputFormat

__all__ = ["MAX_SIDE", "Picture", "contact_sheet", "effective_quality", "encode", "encoder_versions", "sheet_columns"]

MAX_SIDE: Final[dict[OutputFormat, int]] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}  # pixels

# Measured on 32, 64 and 256 pixel avatars, zlib-ng 2.3: level 4 takes the time of level 1 on the small ones and
# makes files 2 to 13 % smaller; level 6 gains under 3 % more on the large ones and takes three times as long.
PNG_LEVEL: Final = 4
# Small pictures show every artefact, so: high quality, and no chroma subsampling in JPEG. Its Huffman tables are
# the standard ones: optimised ones save 10 %, but Pillow's buffer for them is too small for noise. Method 2 of
# WebP is twice as fast as its default 4, for files 2 % larger.
DEFAULT_QUALITY: Final = 90
WEBP_METHOD: Final = 2


class Picture(msgspec.Struct, frozen=True):
    """uint8 pixels `[H, W, C]` (C is 1 or 3), C order, and what a PNG of them says about itself."""

    pixels: bytes
    width: int
    height: int
    channels: int
    text: tuple[tuple[str, str], ...] = ()  # PNG tEXt chunks, Latin-1

    def image(self) -> Image.Image:
        """The pixels as Pillow's image, without a copy."""
        mode = "L" if self.channels == 1 else "RGB"
        return Image.frombuffer(mode, (self.width, self.height), self.pixels, "raw", mode, 0, 1)


def effective_quality(output_format: OutputFormat, quality: int | None) -> int | None:
    """The quality 1..100 that is used, the default filled in; None for the lossless format."""
    if output_format == "png":
        return None
    return DEFAULT_QUALITY if quality is None else quality


def encode(picture: Picture, output_format: OutputFormat, quality: int | None = None) -> bytes:
    """One picture as a file. `quality` is what `effective_quality` says."""
    return _encode(picture.image(), picture.text, output_format, quality)


def sheet_columns(count: int) -> int:
    """Columns of a contact sheet of `count` pictures; it has no more rows than columns."""
    return math.isqrt(count - 1) + 1 if count > 1 else 1


def contact_sheet(
    pictures: Sequence[Picture],
    output_format: OutputFormat,
    quality: int | None = None,
    text: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """Pictures of one size side by side, row by row, no gaps; cells that are left over are white."""
    first, columns = pictures[0], sheet_columns(len(pictures))
    rows = math.ceil(len(pictures) / columns)
    mode, white = ("L", 255) if first.channels == 1 else ("RGB", (255, 255, 255))
    sheet = Image.new(mode, (columns * first.width, rows * first.height), white)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture.image(), (column * first.width, row * first.height))
    return _encode(sheet, text, output_format, quality)


def _encode(
    image: Image.Image, text: Sequence[tuple[str, str]], output_format: OutputFormat, quality: int | None
) -> bytes:
    file = io.BytesIO()
    quality = effective_quality(output_format, quality)
    match output_format:
        case "png":
            info = PngInfo()
            for key, value in text:
                info.add_text(key, value)
            image.save(file, "PNG", pnginfo=info, compress_level=PNG_LEVEL)
        case "jpeg":
            image.save(file, "JPEG", quality=quality, subsampling=0)
        case "webp":
            image.save(file, "WEBP", quality=quality, method=WEBP_METHOD)
    return file.getvalue()


@cache
def encoder_versions() -> str:
    """The libraries that decide the bytes of a file, with their versions and this file's own choices."""
    names = ("pil", "zlib", "zlib_ng", "jpg", "libjpeg_turbo", "webp")
    versions = [f"{name}={features.version(name)}" for name in names]
    return ";".join([*versions, f"png{PNG_LEVEL}", f"quality{DEFAULT_QUALITY}", f"webp{WEBP_METHOD}"])

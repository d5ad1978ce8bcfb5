"""Pictures as clients send them: correct ones of every kind, and files that are made to do harm.

Everything is generated here. `expected` is what has to become of a file: the codes it may be refused with, and
whether it may also be a picture.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

Format = Literal["PNG", "JPEG", "WEBP"]
FORMATS: tuple[Format, ...] = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class Case:
    """A file and what may become of it."""

    name: str
    data: bytes
    codes: frozenset[str]
    picture: bool = False  # whether a picture may come of it


def case(name: str, data: bytes, *codes: str, picture: bool = False) -> Case:
    return Case(name, data, frozenset(codes), picture or not codes)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colourful(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth colours with some noise, so that files of it are long enough to be cut."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    values = np.stack([x, y, (x + y) / 2], -1) + rng.integers(0, 50, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with a correct checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int, image: Image.Image) -> bytes:
    """A PNG whose head says another size, checksum and all."""
    data = encoded(image, "PNG")
    return data[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29]) + data[33:]


def jpeg_claiming(width: int, height: int, image: Image.Image) -> bytes:
    data = bytearray(encoded(image, "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is larger than its picture."""
    data = bytearray(encoded(colourful().convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"))
    start = data.index(b"VP8X") + 12
    data[start : start + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def with_png_chunk(kind: bytes, data: bytes) -> bytes:
    plain = encoded(colourful(), "PNG")
    return plain[:33] + chunk(kind, data) + plain[33:]


@cache
def zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 2**20), 9)


def bombs() -> Iterator[Case]:
    flat = Image.new("RGB", (6000, 5000), (200, 10, 10))
    yield case("bomb-png", encoded(Image.new("L", (16000, 16000)), "PNG"), "image_too_large")
    yield case("bomb-png-rgb", encoded(flat, "PNG"), "image_too_large")
    yield case("bomb-jpeg", encoded(flat, "JPEG", quality=10), "image_too_large")
    yield case("bomb-webp", encoded(flat, "WEBP", lossless=True, quality=0, method=0), "image_too_large")
    yield case("bomb-side", encoded(Image.new("1", (20000, 3)), "PNG"), "image_too_large")
    bomb = zeros(64)
    yield case("bomb-ztxt", with_png_chunk(b"zTXt", b"a\0\0" + bomb), "image_broken", picture=True)
    yield case("bomb-itxt", with_png_chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), "image_broken", picture=True)
    yield case("bomb-iccp", with_png_chunk(b"iCCP", b"a\0\0" + bomb), "image_broken", picture=True)
    texts = b"".join(chunk(b"zTXt", b"k%d\0\0" % i + zlib.compress(bytes(2**20 - 1), 9)) for i in range(128))
    plain = encoded(colourful(), "PNG")
    yield case("bomb-many-texts", plain[:33] + texts + plain[33:], "image_broken", picture=True)
    rows = zlib.compress(bytes(64 * 2**20), 9)
    long = plain[:33] + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    yield case("bomb-too-many-rows", long, "image_broken", picture=True)


def lies() -> Iterator[Case]:
    small = colourful(10, 10)
    yield case("lie-png-huge", png_claiming(2**31 - 1, 2**31 - 1, small), "image_too_large", "image_broken")
    yield case("lie-png-large", png_claiming(4000, 4000, small), "image_broken")
    yield case("lie-png-none", png_claiming(0, 0, small), "image_broken")
    yield case("lie-png-small", png_claiming(5, 5, small), "image_broken", picture=True)
    yield case("lie-jpeg-huge", jpeg_claiming(65500, 65500, small), "image_too_large")
    yield case("lie-jpeg-large", jpeg_claiming(3000, 3000, small), "image_broken", picture=True)
    yield case("lie-jpeg-none", jpeg_claiming(0, 0, small), "image_broken")
    yield case("lie-webp-huge", webp_claiming(2**24, 2**24), "image_too_large", "image_broken", "image_unreadable")
    yield case("lie-webp-large", webp_claiming(16000, 16000), "image_too_large", "image_broken", "image_unreadable")
    broken = bytearray(encoded(small, "PNG"))
    broken[-20] ^= 0xFF
    yield case("lie-png-checksum", bytes(broken), "image_broken")
    length = bytearray(encoded(small, "PNG"))
    length[33:37] = struct.pack(">I", 2**31 - 1)
    yield case("lie-png-chunk-length", bytes(length), "image_broken", picture=True)
    riff = bytearray(encoded(small, "WEBP"))
    riff[4:8] = struct.pack("<I", 2**32 - 1)
    yield case("lie-webp-length", bytes(riff), "image_broken", picture=True)
    for format in FORMATS:
        noise = np.random.default_rng(1).integers(0, 256, 3000, np.uint8).tobytes()
        yield case(f"lie-{format}-noise", encoded(small, format)[:12] + noise, "image_broken")


def truncations() -> Iterator[Case]:
    for format in FORMATS:
        whole = encoded(colourful(64, 48), format)
        for length in range(0, len(whole), 100):
            codes = ["image_broken"] if length else ["image_format"]
            yield case(f"cut-{format}-{length}", whole[:length], *codes, picture=length > len(whole) - 100)


def strangers() -> Iterator[Case]:
    """Files of other kinds, all of which a client could name `.png`."""
    small = colourful(10, 10)
    for format in ("TIFF", "BMP", "GIF", "ICO", "PPM", "EPS", "PDF", "JPEG2000", "TGA", "PCX", "DDS"):
        yield case(f"stranger-{format}", encoded(small, format), "image_format")
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield case("stranger-svg", svg, "image_format")
    yield case("stranger-postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file", "image_format")
    yield case("stranger-url", b"http://127.0.0.1/picture.png", "image_format")
    yield case("stranger-empty", b"", "image_format")
    yield case("stranger-gif-then-png", b"GIF89a" + encoded(small, "PNG"), "image_format")


def polyglots() -> Iterator[Case]:
    small = colourful(10, 10)
    script = b"<script>alert(1)</script>PK\x05\x06" + bytes(18)
    for format in FORMATS:
        yield case(f"polyglot-{format}", encoded(small, format) + script, "image_broken", picture=True)
    yield case("polyglot-png-html", with_png_chunk(b"teSt", b"<html>" + script))
    yield case("polyglot-jpeg-comment", encoded(small, "JPEG", comment=script))


def animations() -> Iterator[Case]:
    frames = [colourful(20, 20), colourful(20, 20).transpose(Image.Transpose.ROTATE_90)]
    for format in ("PNG", "WEBP"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        yield case(f"animation-{format}", data, "image_animated")
    many = [Image.new("RGB", (1, 1), (i, 0, 0)) for i in range(200)]
    data = encoded(many[0], "WEBP", save_all=True, append_images=many[1:])
    yield case("animation-many", data, "image_animated")
    yield case("pictures-in-one-jpeg", encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))


def metadata() -> Iterator[Case]:
    small = colourful(10, 12)
    for orientation in (0, 1, 6, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format in FORMATS:
            yield case(f"exif-{format}-{orientation}", encoded(small, format, exif=exif))
    garbage = b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x01\x12" * 300
    for format in FORMATS:
        yield case(f"exif-{format}-garbage", encoded(small, format, exif=garbage))
        yield case(f"icc-{format}-garbage", encoded(small, format, icc_profile=b"acsp" * 200))
        yield case(f"icc-{format}-swapped", encoded(small, format, icc_profile=swapping_profile()))


@cache
def swapping_profile() -> bytes:
    """An RGB profile whose red and green are exchanged, and whose name is not sRGB's."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tmp!", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp!", b"gXYZ", 1)
    for name in (b"sRGB", "sRGB".encode("utf-16-be")):
        swapped = swapped.replace(name, name[::-1])
    return swapped


def kinds() -> Iterator[Case]:
    """Correct pictures of every mode and shape."""
    base = colourful()
    grey16 = Image.fromarray((np.arange(1200, dtype=np.uint16) * 50).reshape(30, 40))
    yield case("kind-grey16", encoded(grey16, "PNG"))
    yield case("kind-grey16-transparent", encoded(grey16, "PNG", transparency=0))
    yield case("kind-rgb16", rgb16(40, 30))
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield case(f"kind-{mode}", encoded(base.convert(mode), "PNG"))
    yield case("kind-P-transparent", encoded(base.convert("P"), "PNG", transparency=0))
    yield case("kind-L-transparent", encoded(base.convert("L"), "PNG", transparency=100))
    yield case("kind-RGB-transparent", encoded(base, "PNG", transparency=(1, 2, 3)))
    for mode in ("L", "CMYK", "RGB"):
        yield case(f"kind-jpeg-{mode}", encoded(base.convert(mode), "JPEG"))
    yield case("kind-jpeg-progressive", encoded(base, "JPEG", progressive=True))
    yield case("kind-webp-alpha", encoded(base.convert("RGBA"), "WEBP"))
    yield case("kind-webp-lossless", encoded(base, "WEBP", lossless=True))
    for width, height in ((1, 1), (10000, 10), (10, 10000), (1, 3), (33, 32)):
        yield case(f"kind-{width}x{height}", encoded(Image.new("RGB", (width, height), (9, 99, 199)), "PNG"))


def rgb16(width: int, height: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    return raw_png(width, height, 16, 2, [np.full((width, 3), 0x80FF, ">u2").tobytes()] * height)


def raw_png(width: int, height: int, bits: int, colours: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A PNG of these rows of packed samples; `colours` is 0 for grey and 2 for RGB."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"".join((b"\x89PNG\r\n\x1a\n", head, *chunks, pixels, chunk(b"IEND", b"")))


def curved_profile(space: bytes, name: str, gamma: float) -> bytes:
    """A colour profile (ICC) of a grey or of sRGB's primaries, with a curve of its own: `space` is GRAY or `RGB `."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in values))

    text = name.encode() + b"\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78 + -len(text) % 4),
        b"wtpt": xyz(0.9642, 1, 0.8249),
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags |= {b"rXYZ": xyz(0.4361, 0.2225, 0.0139), b"rTRC": curve, b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
        tags |= {b"gTRC": curve, b"bXYZ": xyz(0.1431, 0.0606, 0.7141), b"bTRC": curve}
    at, table = 132 + 12 * len(tags), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", at, len(value))
        at += len(value)
    head = struct.pack(">I4sI4s4s4s", at, b"lcms", 0x02400000, b"mntr", space, b"XYZ ").ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + b"".join(tags.values())


@cache
def corpus() -> tuple[Case, ...]:
    parts = (bombs, lies, truncations, strangers, polyglots, animations, metadata, kinds)
    return tuple(one for part in parts for one in part())

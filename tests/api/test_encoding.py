"""Files hold the pixels they were made of, and equal pixels make equal files."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from service.api.encoding import (
    MAX_SIDE,
    Picture,
    contact_sheet,
    effective_quality,
    encode,
    encoder_versions,
    sheet_columns,
)
from service.api.negotiation import OutputFormat
from service.api.packaging import EncodedImage, multipart_body, npy_body, zip_body

FORMATS: list[OutputFormat] = ["png", "jpeg", "webp"]


def picture(
    channels: int = 3, size: int = 16, seed: int = 0, text: tuple[tuple[str, str], ...] = ()
) -> tuple[Picture, np.ndarray]:
    values = np.random.default_rng(seed).integers(0, 256, (size, size, channels), dtype=np.uint8)
    return Picture(values.tobytes(), size, size, channels, text), values


def smooth(size: int = 32) -> tuple[Picture, np.ndarray]:
    rows, columns = np.mgrid[0:size, 0:size] * (255 / (size - 1))
    values = np.stack([rows, columns, 255 - rows], axis=-1).astype(np.uint8)
    return Picture(values.tobytes(), size, size, 3), values


def decoded(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.load()
    return np.asarray(image)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Chunks of a PNG, read by hand, their checksums verified."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        data = png[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", png, place + 8 + length)
        assert zlib.crc32(kind + data) == checksum
        found.append((kind, data))
        place += 12 + length
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_lossless(channels: int) -> None:
    """A PNG decodes to the very pixels, in colour and in grey."""
    made, values = picture(channels)
    assert np.array_equal(decoded(encode(made, "png")).reshape(values.shape), values)


def test_png_text() -> None:
    """The text stands in uncompressed tEXt chunks before the pixels; without text there is no other chunk."""
    made, _ = picture(text=(("seed", "42"), ("timesteps", "22,0")))
    kinds = chunks(encode(made, "png"))
    assert kinds[1:3] == [(b"tEXt", b"seed\x0042"), (b"tEXt", b"timesteps\x0022,0")]
    bare, _ = picture()
    assert {b"IHDR", b"IDAT", b"IEND"} == {kind for kind, _ in chunks(encode(bare, "png"))}


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_lossy_formats_look_alike(output_format: OutputFormat) -> None:
    """The default quality keeps a smooth picture within a few levels, without chroma subsampling's smear."""
    made, values = smooth()
    error = np.abs(decoded(encode(made, output_format)).astype(int) - values)
    assert error.mean() < 3


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_costs_bytes(output_format: OutputFormat) -> None:
    """Higher quality makes larger files, and the default is what it is said to be."""
    made, _ = picture(size=32)
    sizes = [len(encode(made, output_format, quality)) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))
    default = effective_quality(output_format, None)
    assert encode(made, output_format) == encode(made, output_format, default)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("quality", [1, 90, 100])
def test_noise_is_encoded_at_any_quality(output_format: OutputFormat, quality: int, channels: int) -> None:
    """The hardest picture there is fits the encoders' buffers, at 256 pixels too."""
    made, _ = picture(channels, size=256)
    data = encode(made, output_format, quality)
    assert decoded(data).shape[:2] == (256, 256)


@pytest.mark.parametrize("output_format", FORMATS)
def test_equal_pixels_make_equal_files(output_format: OutputFormat) -> None:
    """Encoding knows no time, no chance and no memory of earlier pictures."""
    made, _ = picture(seed=3)
    before = encode(made, output_format)
    encode(picture(seed=4)[0], output_format)
    assert before == encode(made, output_format)


def test_quality_of_png() -> None:
    """PNG has no quality."""
    assert effective_quality("png", None) is None
    assert effective_quality("jpeg", 7) == 7


@pytest.mark.parametrize("count", range(2, 11))
def test_contact_sheet(count: int) -> None:
    """Row by row in ceil(sqrt(n)) columns, no gaps, left-over cells white."""
    made = [picture(seed=seed, size=4) for seed in range(count)]
    sheet = decoded(contact_sheet([each for each, _ in made], "png"))
    columns = math.ceil(math.sqrt(count))
    assert sheet_columns(count) == columns
    assert sheet.shape == (4 * math.ceil(count / columns), 4 * columns, 3)
    for cell in range(sheet.shape[0] // 4 * columns):
        row, column = divmod(cell, columns)
        found = sheet[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert np.array_equal(found, made[cell][1] if cell < count else np.full((4, 4, 3), 255))


def test_grey_contact_sheet() -> None:
    """Grey pictures make a grey sheet."""
    sheet = decoded(contact_sheet([picture(1, 4)[0]] * 3, "png"))
    assert sheet.shape == (8, 8)
    assert (sheet[4:, 4:] == 255).all()


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_the_largest_side_is_the_encoders_own(output_format: OutputFormat) -> None:
    """A picture of MAX_SIDE is encoded, one pixel more is not."""
    side = MAX_SIDE[output_format]
    encode(Picture(bytes(side), side, 1, 1), output_format)
    with pytest.raises((OSError, ValueError)):
        encode(Picture(bytes(side + 1000), side + 1000, 1, 1), output_format)


def test_versions_are_named() -> None:
    """Whatever decides the bytes is in the versions: the libraries and the choices made here."""
    assert {"pil", "zlib", "libjpeg_turbo", "webp"} <= {part.split("=")[0] for part in encoder_versions().split(";")}
    assert "None" not in encoder_versions().split("webp=")[1].split(";")[0]


IMAGES = [
    EncodedImage(0, 42, 3, "png", b"\x89PNG\r\n--first--\r\n"),
    EncodedImage(1, 43, None, "png", b""),
]


def test_zip() -> None:
    """Names, order and contents; a fixed date; equal images make equal archives."""
    body = zip_body(IMAGES, {"seed": 42})
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["0000-seed42-class3.png", "0001-seed43.png", "manifest.json"]
        assert archive.read("0000-seed42-class3.png") == IMAGES[0].data
        assert {(1980, 1, 1, 0, 0, 0)} == {entry.date_time for entry in archive.infolist()}
    assert body == zip_body(IMAGES, {"seed": 42})


def test_multipart_boundary_is_not_in_the_images() -> None:
    """Each answer has a boundary of its own, which nothing in the images can foresee."""
    first, second = multipart_body(IMAGES)[1], multipart_body(IMAGES)[1]
    assert first != second


@pytest.mark.parametrize("channels", [1, 3])
def test_npy(channels: int) -> None:
    """numpy reads back the float32 array, without pickle."""
    values = np.random.default_rng(0).random((3, 4, 4, channels), dtype=np.float32)
    body = npy_body([value.tobytes() for value in values], 4, 4, channels)
    found = np.load(io.BytesIO(body), allow_pickle=False)
    assert found.dtype == np.dtype("<f4")
    assert np.array_equal(found, values)


def test_jpeg_has_no_chroma_subsampling() -> None:
    data = encode(Picture(bytes(16 * 16 * 3), 16, 16, 3), "jpeg")
    with Image.open(io.BytesIO(data)) as image:
        assert JpegImagePlugin.get_sampling(image) == 0

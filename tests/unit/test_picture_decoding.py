"""What becomes of a client's picture: formats, colours, orientation, transparency, size, masks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from service.api.picture_input import MAX_PIXELS, Fit, Order, Picture, Refusal, Use, format_of
from service.api.picture_input_decode import decode
from tests.hostile_pictures import (
    FORMATS,
    Format,
    chunk,
    colourful,
    curved_profile,
    encoded,
    raw_png,
    rgb16,
    swapping_profile,
)


def read(
    data: bytes, *, side: int = 8, use: Use = "picture", fit: Fit = "crop", channels: int = 3, small_side: int = 0
) -> Picture:
    answer = decode(Order(data, use, fit, side, channels, small_side))
    assert isinstance(answer, Picture), answer
    return answer


def colours(picture: Picture) -> np.ndarray[Any, Any]:
    return np.frombuffer(picture.pixels, np.uint8).reshape(picture.side, picture.side, -1)


def mask_of(picture: Picture) -> np.ndarray[Any, Any]:
    return np.frombuffer(picture.mask, np.uint8).reshape(picture.side, picture.side)


def refused(data: bytes, use: Use = "picture", fit: Fit = "crop", side: int = 8) -> str:
    answer = decode(Order(data, use, fit, side, 3))
    assert isinstance(answer, Refusal)
    return answer.code


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_a_lossless_picture_of_the_right_size_comes_through_exactly(mode: str) -> None:
    image = colourful(8, 8).convert(mode)
    assert np.array_equal(np.asarray(image.convert("RGB")), colours(read(encoded(image, "PNG"))))


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_known_by_its_first_bytes_and_read(format: Format) -> None:
    data = encoded(Image.new("RGB", (30, 20), (200, 100, 50)), format)
    assert format == format_of(data)
    assert abs(colours(read(data)).astype(int) - (200, 100, 50)).max() <= 3


def test_sixteen_bits_are_scaled_not_cut() -> None:
    """Pillow's own conversion of 16-bit grey turns nearly all of it white."""
    grey = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    got = colours(read(encoded(Image.fromarray(grey), "PNG")))[..., 0]
    assert np.array_equal(np.round(grey / 257).astype(np.uint8), got)
    assert colours(read(rgb16(8, 8))).tolist() == np.full((8, 8, 3), 0x80).tolist()


def test_sixteen_bits_can_be_transparent() -> None:
    grey = np.zeros((8, 8), np.uint16)
    grey[:, 4:] = 30000
    data = encoded(Image.fromarray(grey), "PNG", transparency=30000)
    assert (colours(read(data))[:, 4:] == 255).all()
    assert mask_of(read(data, use="cutout")).tolist() == [[0] * 4 + [1] * 4] * 8


@pytest.mark.parametrize(
    ("bits", "colours", "row", "key"),
    [
        (1, 0, b"\xf0", (1,)),
        (2, 0, b"\xff\x55", (3,)),
        (4, 0, b"\xff\xff\x55\x55", (15,)),
        (8, 0, b"\xff" * 4 + b"\x55" * 4, (255,)),
        (16, 2, b"\x03\xe8\x07\xd0\x0b\xb8" * 4 + bytes(24), (1000, 2000, 3000)),
    ],
)
def test_a_transparent_colour_is_found_whatever_its_bits(
    bits: int, colours: int, row: bytes, key: tuple[int, ...]
) -> None:
    transparent = chunk(b"tRNS", b"".join(value.to_bytes(2, "big") for value in key))
    data = raw_png(8, 8, bits, colours, [row] * 8, transparent)
    assert mask_of(read(data, use="cutout")).tolist() == [[1] * 4 + [0] * 4] * 8


def test_what_is_kept_of_a_cutout_was_there() -> None:
    """A single opaque pixel in sixteen by sixteen leaves no colour that could be kept."""
    image = Image.new("RGBA", (128, 128))
    for x in range(8, 128, 16):
        for y in range(8, 128, 16):
            image.putpixel((x, y), (200, 100, 50, 255))
    assert mask_of(read(encoded(image, "PNG"), use="cutout")).all()


@pytest.mark.parametrize("transparency", [None, 7])
def test_sixteen_bits_are_turned_too(transparency: int | None) -> None:
    grey = np.zeros((8, 8), np.uint16)
    grey[0] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    keyed = {} if transparency is None else {"transparency": transparency}
    got = colours(read(encoded(Image.fromarray(grey), "PNG", exif=exif.tobytes(), **keyed)))
    assert got[..., 0].tolist() == [[0] * 7 + [255]] * 8


def test_orientation_in_xmp_is_passed_over() -> None:
    """Browsers pass it over, so the picture is upright as it is."""
    image = colourful(8, 8)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    plain, noted = encoded(image, "JPEG"), encoded(image, "JPEG", xmp=xmp)
    assert Image.open(io.BytesIO(noted)).getexif().get(0x0112) == 6
    assert np.array_equal(colours(read(plain)), colours(read(noted)))


@pytest.mark.parametrize("name", ["linear", "GIMP built-in Linear sRGB"])
@pytest.mark.parametrize(("mode", "space"), [("RGB", b"RGB "), ("RGBA", b"RGB "), ("L", b"GRAY"), ("LA", b"GRAY")])
def test_linear_light_is_no_srgb_whatever_it_is_called(name: str, mode: str, space: bytes) -> None:
    image = Image.new("L", (8, 8), 55).convert(mode)
    got = colours(read(encoded(image, "PNG", icc_profile=curved_profile(space, name, 1.0))))
    assert np.unique(got).tolist() == [128]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_exif_orientation_is_applied(format: Format, orientation: int) -> None:
    """A picture with a red corner, stored turned, comes back with it where the photographer saw it."""
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4] = (255, 0, 0)
    upright[:4, 4:] = (0, 0, 255)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    assert abs(colours(read(data)).astype(int) - upright).max() <= 40
    assert abs(colours(read(data, fit="exact")).astype(int) - upright).max() <= 40


def test_transparency_is_composited_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (100, 0, 0, 0))
    image.paste((100, 0, 0, 255), (0, 0, 4, 8))
    got = colours(read(encoded(image, "PNG")))
    assert (got[:, :4] == (100, 0, 0)).all()
    assert (got[:, 4:] == 255).all()


def test_a_cutout_keeps_its_colours_and_says_where_it_is_transparent() -> None:
    """What is half there counts as there, and no white is mixed into it."""
    image = Image.new("RGBA", (8, 8), (100, 0, 0, 0))
    image.paste((100, 0, 0, 128), (0, 0, 4, 8))
    got = read(encoded(image, "PNG"), use="cutout")
    assert (colours(got)[:, :4] == (100, 0, 0)).all()
    assert mask_of(got).tolist() == [[0] * 4 + [1] * 4] * 8


def test_a_mask_is_its_white_part() -> None:
    image = Image.new("L", (64, 64), 127)
    image.paste(128, (0, 0, 32, 64))
    got = mask_of(read(encoded(image, "PNG"), use="mask"))
    assert got.tolist() == [[1] * 4 + [0] * 4] * 8
    transparent = Image.new("LA", (8, 8), (0, 0))  # on white
    assert mask_of(read(encoded(transparent, "PNG"), use="mask")).all()


def test_a_mask_by_transparency_ignores_colours() -> None:
    image = Image.new("LA", (8, 8), (255, 255))
    image.paste((255, 127), (0, 0, 4, 8))
    assert mask_of(read(encoded(image, "PNG"), use="transparency")).tolist() == [[1] * 4 + [0] * 4] * 8


def test_what_has_no_transparency_says_no_mask() -> None:
    data = encoded(colourful(8, 8), "PNG")
    assert refused(data, "cutout") == "mask_missing"
    assert refused(data, "transparency") == "mask_opaque"


def test_crop_takes_the_middle_square() -> None:
    image = Image.new("RGB", (24, 8), (255, 0, 0))
    image.paste((0, 255, 0), (8, 0, 16, 8))
    assert (colours(read(encoded(image, "PNG"))) == (0, 255, 0)).all()


def test_pad_keeps_everything_and_is_white_and_kept() -> None:
    image = Image.new("RGB", (16, 8), (255, 0, 0))
    got = colours(read(encoded(image, "PNG"), fit="pad"))
    assert (got[:2] == 255).all()
    assert (got[6:] == 255).all()
    assert (got[2:6] == (255, 0, 0)).all()
    mask = mask_of(read(encoded(Image.new("RGBA", (16, 8), (0, 0, 0, 0)), "PNG"), fit="pad", use="cutout"))
    assert mask[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    mask = mask_of(read(encoded(Image.new("CMYK", (16, 8)), "JPEG"), fit="pad", use="mask"))
    assert mask[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_exact_refuses_another_size() -> None:
    assert refused(encoded(colourful(8, 9), "PNG"), fit="exact") == "image_size"


def test_a_small_picture_for_super_resolution_stays_small() -> None:
    image = colourful(2, 2)
    for fit in ("crop", "exact", "pad"):
        got = read(encoded(image, "PNG"), small_side=2, fit=fit)
        assert got.side == 2
        assert np.array_equal(np.asarray(image), colours(got))


def test_a_grey_model_gets_luma() -> None:
    image = colourful(8, 8)
    assert read(encoded(image, "PNG"), channels=1).pixels == image.convert("L").tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_a_colour_profile_is_applied(format: Format) -> None:
    """With red and green exchanged in the profile, red is shown green; sRGB's own profile changes nothing."""
    image = Image.new("RGB", (8, 8), (220, 40, 40))
    plain = colours(read(encoded(image, format)))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(plain, colours(read(encoded(image, format, icc_profile=srgb))))
    red, green, _ = colours(read(encoded(image, format, icc_profile=swapping_profile())))[4, 4].tolist()
    assert green > 180
    assert red < 80


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_grey_of_a_profile_does_not_take_colours_away(mode: str) -> None:
    """A profile for grey does not fit them."""
    image = colourful(8, 8).convert(mode)
    got = colours(read(encoded(image, "PNG", icc_profile=curved_profile(b"GRAY", "g", 2.2))))
    assert np.array_equal(np.asarray(image.convert("RGB")), got)


def test_a_jpeg_of_more_scans_than_anybody_writes_is_refused() -> None:
    """Each goes over all pixels, and a few bytes are one."""
    image = Image.new("RGB", (64, 64), (200, 40, 40))
    data = encoded(image, "JPEG", progressive=True)
    assert abs(colours(read(data)).astype(int) - (200, 40, 40)).max() <= 3
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    assert refused(data[:end] + data[start:end] * 200 + data[end:]) == "image_scans"
    assert colours(read(data + data[start:end] * 200)).shape == (8, 8, 3)  # behind its end, as phones put films


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_a_profile_that_does_not_fit_is_passed_over(mode: str) -> None:
    data = colours(read(encoded(Image.new(mode, (8, 8)), "JPEG")))
    for profile in (b"", b"acsp" * 100, swapping_profile() if mode != "RGB" else b"x"):
        got = colours(read(encoded(Image.new(mode, (8, 8)), "JPEG", icc_profile=profile)))
        assert np.array_equal(data, got)


def test_cmyk_is_read_as_it_prints() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = colours(read(encoded(image, "JPEG")))[4, 4].tolist()
    assert red > 240
    assert green < 15
    assert blue < 15


def test_a_sliver_is_padded_without_a_huge_canvas() -> None:
    image = Image.new("RGB", (10000, 10), (9, 99, 199))
    got = colours(read(encoded(image, "PNG"), fit="pad"))
    assert (got[3] == (9, 99, 199)).all()
    assert (got[0] == 255).all()
    assert (colours(read(encoded(image, "PNG"))) == (9, 99, 199)).all()


def test_the_limit_on_pixels_is_as_documented() -> None:
    assert refused(encoded(Image.new("1", (5001, 5000)), "PNG")) == "image_too_large"
    assert MAX_PIXELS == 5000 * 5000
    assert read(encoded(Image.new("1", (5000, 5000)), "PNG")).side == 8


def test_a_colour_profile_leaves_transparency_as_it_is() -> None:
    image = Image.new("RGBA", (8, 8), (220, 40, 40, 0))
    image.paste((220, 40, 40, 255), (0, 0, 4, 8))
    got = colours(read(encoded(image, "PNG", icc_profile=swapping_profile())))
    assert (got[:, 4:] == 255).all()
    assert (got[:, :4, 1] > 180).all()


def test_a_mask_takes_the_nearest_pixel_whatever_is_beside_it() -> None:
    values = np.full((24, 24), 255, np.uint8)
    values[1::3, 1::3] = 0
    assert not mask_of(read(encoded(Image.fromarray(values), "PNG"), use="mask")).any()

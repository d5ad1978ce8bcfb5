"""Decodes a client's picture and fits it to a model. Runs in a worker with little memory, never beside HTTP.

Whatever a file holds besides its first picture's pixels is used here or dropped here: orientation, colour
profile, transparency. Nothing else of it leaves.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image, ImageCms, ImageFile

from service.api.picture_input import FORMATS, MAX_PIXELS, MAX_SIDE, Fit, Order, Picture, Refusal, Use

__all__ = ["decode"]

WHITE: Final[dict[str, int | tuple[int, ...]]] = {
    "L": 255,
    "RGB": (255, 255, 255),
    "RGBA": (255, 255, 255, 255),
    "CMYK": (0, 0, 0, 0),
}
BLACK: Final[dict[str, int | tuple[int, ...]]] = {
    "L": 0,
    "RGB": (0, 0, 0),
    "RGBA": (0, 0, 0, 255),
    "CMYK": (0, 0, 0, 255),
}
FAINT: Final = 16  # alpha under which a smaller picture's colour is noise
SHADES: Final = (51 * np.indices((6, 6, 6)).reshape(1, 3, -1).swapaxes(1, 2)).astype(np.uint8)  # a few of all
HALF: Final = 128  # luma from which a mask counts as white, alpha from which a pixel counts as there

MAX_SCANS: Final = 100  # of a JPEG; a progressive one has about ten
START_OF_SCAN: Final = 0xDA
END_OF_IMAGE: Final = 0xD9
FILL: Final = 0xFF
ALONE: Final = 0x01  # markers up to it, and the restarts, have no segment
RESTARTS: Final = range(0xD0, 0xD9)

_BROKEN: Final = Refusal("image_broken", "The file is damaged or cut short.")


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(code, message)


def decode(order: Order) -> Picture | Refusal:
    """The picture that an order asks for, or why there is none. Raises MemoryError."""
    try:
        return _decode(order)
    except _Refused as error:
        return error.refusal
    except MemoryError:
        raise
    except Exception:  # decoders raise whatever they like
        return _BROKEN


def _decode(order: Order) -> Picture:
    image = _open(order.data)
    _scale_key(image)
    image.load()
    has_alpha = image.has_transparency_data
    if order.use == "cutout" and not has_alpha:
        raise _Refused("mask_missing", "Needed, as the image has no transparency that could say what to repaint.")
    if order.use == "transparency" and not has_alpha:
        raise _Refused("mask_opaque", "Should have transparent pixels where the image is to be repainted.")
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    profile = image.info.get("icc_profile")
    image = _upright(_plain(image, has_alpha))
    small = bool(order.small_side) and image.size == (order.small_side, order.small_side)
    side = order.small_side if small else order.side
    mask = b"" if order.use == "picture" else _mask(_fitted(image, side, order.fit, for_mask=True), order.use)
    if order.use in ("mask", "transparency"):
        return Picture(side, mask=mask)
    image = _standard_colours(_fitted(image, side, order.fit), profile, grey=grey)
    if order.use == "cutout":
        # where hardly anything was there before it was made smaller, no colour is left that could be kept
        faint = image.getchannel("A").tobytes()
        mask = bytes(repaint or alpha < FAINT for repaint, alpha in zip(mask, faint, strict=True))
        image = image.convert("RGB")
    else:
        image = _on_white(image)
    return Picture(side, image.convert("L" if order.channels == 1 else "RGB").tobytes(), mask)


def _open(data: bytes) -> Image.Image:
    """The file's head: Pillow reads no pixels yet."""
    Image.MAX_IMAGE_PIXELS = None  # the limit is below, and is an error, not a warning
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _Refused(
            "image_too_large", f"Should have at most {MAX_PIXELS} pixels, and at most {MAX_SIDE} on each side."
        )
    if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
        raise _Refused("image_scans", f"Should be a JPEG of at most {MAX_SCANS} scans.")
    # Phones put several pictures into one JPEG (MPO); its first is the photograph.
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) != 1:
        raise _Refused("image_animated", "Should be one picture, not an animation.")
    return image


def _scans(data: bytes) -> int:
    """How often a JPEG's pixels are gone over: each time costs all of them, and a few bytes say so."""
    count, place = 0, 2
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 3:
        marker = data[place + 1]
        if marker == END_OF_IMAGE:
            break
        count += marker == START_OF_SCAN
        if marker == FILL:
            place += 1
        elif marker <= ALONE or marker in RESTARTS:
            place += 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return count


def _scale_key(image: Image.Image) -> None:
    """Puts a PNG's transparent colour on the scale that Pillow puts its pixels on, which it does not itself."""
    key = image.info.get("transparency")
    raw = image.tile[0][3] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    if isinstance(key, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif isinstance(key, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in key)


def _plain(image: Image.Image, has_alpha: bool) -> Image.Image:
    """The picture in a mode that can be resized: L, RGB, RGBA or CMYK, eight bits a channel."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_16_bits(image)
    if has_alpha:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, rounded to 8; Pillow's own conversion would cut it off at 255."""
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        plain = Image.merge("RGBA", (grey, grey, grey, alpha))
    else:
        plain = grey.copy()
    plain.info.update({name: value for name, value in image.info.items() if name != "transparency"})
    return plain


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data says, as browsers do; data that cannot be read says nothing, nor does XMP."""
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(0x0112, 1)
    except Exception:
        return image
    if orientation not in range(2, 9):
        return image
    turn = (
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )[orientation - 2]
    return image.transpose(turn)


def _fitted(image: Image.Image, side: int, fit: Fit, *, for_mask: bool = False) -> Image.Image:
    """A square of `side`. The whole picture is never copied: it may be a thousand times as large.

    What is padded is white in a picture, and kept (black, opaque) by a mask.
    """
    width, height = image.size
    resampling = Image.Resampling.NEAREST if for_mask else Image.Resampling.LANCZOS
    if (width, height) == (side, side):
        return image
    if fit == "exact":
        raise _Refused("image_size", f"Should be {side} pixels wide and high, or be fitted by crop or pad.")
    if fit == "crop":
        cut = min(width, height)
        left, top = (width - cut) // 2, (height - cut) // 2
        return image.resize((side, side), resampling, (left, top, left + cut, top + cut))
    longer = max(width, height)
    inner = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    square = Image.new(image.mode, (side, side), (BLACK if for_mask else WHITE)[image.mode])
    square.paste(image.resize(inner, resampling), ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return square


def _standard_colours(image: Image.Image, profile: bytes | None, *, grey: bool) -> Image.Image:
    """In sRGB, from the picture's own colour profile; a profile that does not fit it is passed over.

    `grey`: the file's pixels are, though beside their alpha they are colours here.
    """
    if profile:
        try:
            turned = _turned(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), grey=grey)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
        else:
            if image.mode == "RGBA":
                turned.putalpha(image.getchannel("A"))
            return turned
    return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _turned(image: Image.Image, source: ImageCms.ImageCmsProfile, *, grey: bool) -> Image.Image:
    """RGB, without alpha. What is as good as sRGB, whatever its name, changes nothing: it would only round."""
    opaque = image
    if grey and source.profile.xcolor_space.strip() == "GRAY":
        opaque = image.convert("L")
    elif image.mode == "RGBA":
        opaque = image.convert("RGB")
    convert = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), opaque.mode, "RGB")
    if opaque.mode == "RGB":
        moved = np.asarray(convert.apply(Image.fromarray(SHADES))).astype(int) - SHADES
        if np.abs(moved).max() <= 1:
            return opaque.copy()
    return convert.apply(opaque)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE["RGBA"]), image).convert("RGB")


def _mask(image: Image.Image, use: Use) -> bytes:
    """1 where it is to be repainted: the white of a mask, the transparent part of anything else."""
    if use == "mask":
        return bytes(value >= HALF for value in _on_white(image).convert("L").tobytes())
    return bytes(value < HALF for value in image.getchannel("A").tobytes())

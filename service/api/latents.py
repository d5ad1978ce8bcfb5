"""Reads the arrays of a request (`latents`, a noisy picture): `.npy`, checked before anything of its size is made."""

from __future__ import annotations

import ast
import binascii
import math
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from service.errors import InvalidRequest

__all__ = ["read_array", "read_latents"]

_MAGIC: Final = b"\x93NUMPY"
_MAX_HEADER: Final = 4096  # bytes; numpy writes 118 for such an array
_MAX_LATENT: Final = 100.0  # a normal draw in float32 never exceeds 9; far beyond, the network overflows
_MAX_VALUE: Final = 100_000.0  # of any array, noise of the highest level included


def read_latents(text: str, shape: tuple[int, int, int, int]) -> list[bytes]:
    """First noise draws of a batch, one `bytes` of float32 `[C, H, W]` (C order, little-endian) an image.

    `text` is base64 of a `.npy` file (versions 1 to 3) of a little-endian float32 array of exactly `shape`
    `[N, C, H, W]`, in C or Fortran order, every value finite. Raises `InvalidRequest`.
    """
    if len(text) > (4 * math.prod(shape) + _MAX_HEADER + 12) * 4 // 3 + 4:
        raise _too_large("latents", shape)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error, and characters that are not ASCII
        raise _refusal("latents", "base64", "Should be base64.") from None
    return read_array(data, shape, field="latents", limit=_MAX_LATENT)


def read_array(data: bytes, shape: tuple[int, int, int, int], *, field: str, limit: float = _MAX_VALUE) -> list[bytes]:
    """The rows of a `.npy` file as `read_latents` describes it; a single one may leave out its first dimension.

    No value is farther from 0 than `limit`.

    Raises `InvalidRequest` with the name of the `field`.
    """
    size = 4 * math.prod(shape)
    if len(data) > size + _MAX_HEADER + 12:
        raise _too_large(field, shape)
    header, start = _header(data, field)
    if header.get("descr") != "<f4":
        raise _refusal(field, f"{field}_dtype", "The array should be float32, little-endian (`<f4`).")
    if header.get("shape") != shape and not (shape[0] == 1 and header.get("shape") == shape[1:]):
        raise _refusal(field, f"{field}_shape", f"The array should have the shape {list(shape)}.")
    if len(data) - start != size:
        raise _refusal(field, f"{field}_size", f"The array should be {size} bytes after the header.")
    order = header.get("fortran_order")
    if order is not True and order is not False:
        raise _refusal(field, "npy", "Should be a .npy file.")
    flat = np.frombuffer(data, "<f4", offset=start)
    array: npt.NDArray[np.float32] = flat.reshape(shape, order="F" if order else "C")
    if not np.isfinite(array).all():
        raise _refusal(field, f"{field}_not_finite", "Every value should be finite.")
    if max(array.max(), -array.min()) > limit:
        raise _refusal(field, f"{field}_out_of_range", f"Every value should be from -{limit:g} to {limit:g}.")
    return [row.tobytes() for row in array]


def _header(data: bytes, field: str) -> tuple[dict[str, object], int]:
    """The dictionary of a `.npy` header, and where the array starts."""
    version = data[6:8]
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(version)
    if data[:6] != _MAGIC or width is None or len(data) < 8 + width:
        raise _refusal(field, "npy", "Should be a .npy file.")
    (length,) = struct.unpack_from("<H" if width == 2 else "<I", data, 8)
    start = 8 + width + length
    if length > _MAX_HEADER or start > len(data):
        raise _refusal(field, "npy", "Should be a .npy file.")
    try:
        header = ast.literal_eval(data[8 + width : start].decode("latin-1").strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise _refusal(field, "npy", "Should be a .npy file.") from None
    if not isinstance(header, dict):
        raise _refusal(field, "npy", "Should be a .npy file.")
    return header, start


def _too_large(field: str, shape: tuple[int, ...]) -> InvalidRequest:
    return _refusal(field, f"{field}_too_large", f"Longer than an array of shape {list(shape)} can be.")


def _refusal(field: str, code: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, loc=("body", field), code=code)

"""Several images in one body: `multipart/mixed`, `application/zip`, `application/x-npy`. Pure and blocking."""

from __future__ import annotations

import io
import secrets
import zipfile
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from service.api.negotiation import IMAGE_TYPES, OutputFormat

__all__ = ["EncodedImage", "multipart_body", "npy_body", "zip_body"]

_ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the format's first day: equal images give equal archives
_ZIP_MODE: Final = 0o100644 << 16  # a plain file that its owner may write


class EncodedImage(msgspec.Struct, frozen=True):
    """One encoded image of an answer."""

    index: int
    seed: int
    class_label: int | None
    output_format: OutputFormat
    data: bytes
    t: float | None = None  # how far along an interpolation it is

    @property
    def file_name(self) -> str:
        """`0000-seed42-class3.png`; without a class on an unconditional model."""
        label = "" if self.class_label is None else f"-class{self.class_label}"
        return f"{self.index:04d}-seed{self.seed}{label}.{self.output_format}"


def multipart_body(images: Sequence[EncodedImage]) -> tuple[bytes, str]:
    """Body and content type of `multipart/mixed` (RFC 2046): a part for each image, in order."""
    boundary = secrets.token_hex(16)
    lines: list[bytes] = []
    for image in images:
        label = "" if image.class_label is None else f"X-Class-Label: {image.class_label}\r\n"
        way = "" if image.t is None else f"X-T: {image.t!r}\r\n"
        head = (
            f"--{boundary}\r\nContent-Type: {IMAGE_TYPES[image.output_format]}\r\n"
            f"Content-Length: {len(image.data)}\r\n"
            f"X-Index: {image.index}\r\nX-Seed: {image.seed}\r\n{label}{way}\r\n"
        )
        lines += [head.encode("ascii"), image.data, b"\r\n"]
    lines.append(f"--{boundary}--\r\n".encode("ascii"))
    return b"".join(lines), f"multipart/mixed; boundary={boundary}"


def zip_body(images: Sequence[EncodedImage], manifest: object) -> bytes:
    """A ZIP archive of the images and `manifest.json`, nothing compressed twice, every date the same."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for image in images:
            _add(archive, image.file_name, image.data)
        _add(archive, "manifest.json", msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return file.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _ZIP_DATE)
    entry.external_attr = _ZIP_MODE
    entry.create_system = 3  # Unix, whatever the server runs on
    archive.writestr(entry, data)


def npy_body(pixels: Sequence[bytes], height: int, width: int, channels: int) -> bytes:
    """A `.npy` file of float32 `[N, H, W, C]`; `pixels` are float32 `[H, W, C]` each, little-endian."""
    array = np.frombuffer(b"".join(pixels), "<f4").reshape(len(pixels), height, width, channels)
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()

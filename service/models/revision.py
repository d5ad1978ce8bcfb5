"""A model's revision: the hash of everything in its folder that decides pixels.

That is the weights, the network's and the noise schedule's configuration, each as its bytes are. Class names,
README and `model_index.json` (checked to name fixed classes) cannot change a pixel: renaming a class must not
change the revision, or every cached image of the model would expire for nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from service.cache import default_cache_dir, write_whole
from service.errors import FatalModelError

SETTLED_SECONDS = 2.0  # a file changed this lately may change again within one tick of its time stamp


class _Digest(msgspec.Struct, frozen=True):
    """A remembered digest and the identity of the file that it belongs to."""

    identity: tuple[int, ...]
    sha256: str


def folder_revision(folder: Path, files: Sequence[Path]) -> str:
    """`sha256:<hex>` over the relative names and contents of `files`, in order of name."""
    total = hashlib.sha256(b"onestep model revision 1\0")
    for path in sorted(files):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + bytes.fromhex(file_digest(path)))
    return "sha256:" + total.hexdigest()


def file_digest(path: Path) -> str:
    """Hex SHA-256 of the file, remembered on disk while its inode, size and time stamps stay the same."""
    try:
        identity = _identity(path)
        memory = default_cache_dir() / "digests" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        known = _recall(memory)
        if known is not None and known.identity == identity:
            return known.sha256
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _identity(path) != identity:
            raise FatalModelError(f"{path}: changed while it was read.")
    except OSError as error:
        raise FatalModelError(f"{path}: cannot be read ({error.strerror}).") from None
    if time.time() - max(identity[-2:]) / 1e9 > SETTLED_SECONDS:
        _remember(memory, _Digest(identity, digest))
    return digest


def _identity(path: Path) -> tuple[int, ...]:
    """Device, inode, size, and times of the last change of content and of attributes, in nanoseconds."""
    stat = path.stat()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _recall(memory: Path) -> _Digest | None:
    try:
        known = msgspec.json.decode(memory.read_bytes(), type=_Digest)
        return known if len(bytes.fromhex(known.sha256)) == hashlib.sha256().digest_size else None
    except (OSError, ValueError):  # never stored, or damaged: hash again
        return None


def _remember(memory: Path, digest: _Digest) -> None:
    """Stores the digest; without a writable cache folder every start hashes again."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(memory, msgspec.json.encode(digest))
    except OSError:
        return

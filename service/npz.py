"""A large `.npz` of images that can be resumed: `arr_0` uint8 `[N, H, W, C]`, `arr_1` int64 labels `[N]`.

The format of the evaluation suite of guided-diffusion and openai/consistency_models. Until it is complete the
images are in `NAME.npz.part`, a folder beside it; what is done survives an interruption.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import msgspec
import numpy as np
from numpy.lib import format as npy

from service.cache import write_whole


class Run(msgspec.Struct, frozen=True):
    """What decides the images; a run is resumed only by an equal one."""

    revision: str
    fingerprint: str
    sigmas: tuple[float, ...]
    first_seed: int
    count: int
    class_label: int | None


class OtherRun(Exception):
    """The unfinished images belong to a run with other arguments, or are damaged."""


class ResumableNpz:
    """Images written in any order, each once; `missing` tells which are not there."""

    def __init__(self, target: Path, run: Run, shape: tuple[int, int, int]) -> None:
        refuse_folder(target)
        self._target = target
        self._folder = target.with_name(target.name + ".part")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._claim(run)
        images, done = self._folder / "images.npy", self._folder / "done.npy"
        mode = "r+" if images.exists() and done.exists() else "w+"  # one without the other says nothing
        try:
            self._images = npy.open_memmap(images, mode, np.uint8, (run.count, *shape))
            _reserve(images)
            self._done = npy.open_memmap(done, mode, np.bool_, (run.count,))
            _reserve(done)
        except ValueError as error:
            raise OtherRun(f"{self._folder} is damaged ({error}); remove it") from None

    def _claim(self, run: Run) -> None:
        note = self._folder / "run.json"
        if note.exists():
            try:
                found = msgspec.json.decode(note.read_bytes(), type=Run)
            except (ValueError, msgspec.MsgspecError) as error:
                raise OtherRun(f"{note} is damaged ({error}); remove its folder") from None
            if found != run:
                raise OtherRun(f"{self._folder} holds images of another run; remove it or choose another file")
        else:
            write_whole(note, msgspec.json.format(msgspec.json.encode(run)))

    def missing(self) -> list[int]:
        """Indices of the images that are not there yet."""
        return [int(i) for i in np.flatnonzero(~self._done)]

    def put(self, index: int, pixels: bytes) -> None:
        """Keeps an image's uint8 pixels `[H, W, C]`."""
        self._images[index] = np.frombuffer(pixels, np.uint8).reshape(self._images.shape[1:])
        self._done[index] = True

    def complete(self, labels: Sequence[int]) -> None:
        """Writes the `.npz` and removes the unfinished parts."""
        self._images.flush()
        scratch = self._folder / "whole.npz"
        np.save(self._folder / "labels.npy", np.asarray(labels, np.int64))
        with ZipFile(scratch, "w", ZIP_STORED) as archive:
            archive.write(self._folder / "images.npy", "arr_0.npy")
            archive.write(self._folder / "labels.npy", "arr_1.npy")
        os.replace(scratch, self._target)
        shutil.rmtree(self._folder)


def refuse_folder(target: Path) -> None:
    """Raises IsADirectoryError for what can be no file."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))


def _reserve(path: Path) -> None:
    """Room on the disk for all of a file: a write to its map without would end the process by a signal."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

"""A large `.npz` goes on where it was interrupted, and never with images that were lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.npz import OtherRun, ResumableNpz, Run

RUN = Run("sha256:0", "numerics", (80.0,), 0, 3, None)


def opened(folder: Path) -> ResumableNpz:
    return ResumableNpz(folder / "a.npz", RUN, (2, 2, 3))


def test_what_is_done_survives_an_interruption(tmp_path: Path) -> None:
    opened(tmp_path).put(1, bytes([7] * 12))
    again = opened(tmp_path)
    assert again.missing() == [0, 2]
    for index in again.missing():
        again.put(index, bytes([index] * 12))
    again.complete([4, 5, 6])
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["arr_0"][:, 0, 0, 0].tolist() == [0, 7, 2]
        assert stored["arr_1"].tolist() == [4, 5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("lost", ["images.npy", "done.npy"])
def test_one_part_without_the_other_is_nothing(tmp_path: Path, lost: str) -> None:
    """So it is when the clearing up after the end was interrupted."""
    opened(tmp_path).put(1, bytes([7] * 12))
    (tmp_path / "a.npz.part" / lost).unlink()
    assert opened(tmp_path).missing() == [0, 1, 2]


@pytest.mark.parametrize("damaged", ["images.npy", "done.npy", "run.json"])
def test_what_is_damaged_is_named(tmp_path: Path, damaged: str) -> None:
    """As a full disk may leave it."""
    opened(tmp_path).put(1, bytes([7] * 12))
    (tmp_path / "a.npz.part" / damaged).write_bytes(b"")
    with pytest.raises(OtherRun, match=r"a\.npz\.part.* is damaged"):
        opened(tmp_path)


def test_a_folder_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_images_have_room_on_the_disk_from_the_start(tmp_path: Path) -> None:
    """A write to the map of a file with holes ends the process when the disk is full."""
    opened(tmp_path)
    found = (tmp_path / "a.npz.part" / "images.npy").stat()
    assert found.st_blocks * 512 >= found.st_size

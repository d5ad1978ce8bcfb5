"""Which images of a run are there already."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.npz import OtherRun
from service.resumed import Expected, is_made


def test_only_an_image_of_this_run_is_made(tmp_path: Path) -> None:
    expected = Expected("avatars", "sha256:1", [22, 0])
    path = tmp_path / "seed1.png"
    assert not is_made(path, expected)

    def write(**text: str) -> None:
        info = PngInfo()
        for name, value in text.items():
            info.add_text(name, value)
        Image.new("RGB", (2, 2)).save(path, pnginfo=info)

    right = {"model": "avatars", "revision": "sha256:1", "timesteps": "22,0"}
    write(**right)
    assert is_made(path, expected)
    for other in ({"model": "other"}, {"revision": "sha256:2"}, {"timesteps": "0"}):
        write(**right | other)
        with pytest.raises(OtherRun):
            is_made(path, expected)
    path.write_bytes(b"no image")
    with pytest.raises(OtherRun):
        is_made(path, expected)

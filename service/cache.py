"""The user's cache folder, and files in it that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["default_cache_dir", "write_whole"]


def default_cache_dir() -> Path:
    """`onestep` in the user's cache folder: `$XDG_CACHE_HOME`, else `~/.cache`.

    A user without a home has a folder in that for temporary files.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "onestep"
    try:
        return Path("~/.cache").expanduser() / "onestep"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"onestep-{os.getuid()}"


def write_whole(path: Path, data: bytes) -> None:
    """Puts `data` there at once, and leaves nothing beside it. Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        scratch = Path(file.name)
        try:
            file.write(data)
            file.close()
            scratch.replace(path)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise

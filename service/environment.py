"""The environment of processes that the service starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["without_secrets"]

SECRETS: Final = frozenset({"ONESTEP_API_KEYS", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """For a process that needs no keys: it may be the one that hostile bytes take over."""
    return {name: value for name, value in environ.items() if name not in SECRETS}

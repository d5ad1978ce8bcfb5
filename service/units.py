"""Reads what people write for durations, sizes and lists: `90`, `1.5m`, `10MiB`, `a, b`."""

from __future__ import annotations

import math
import re

__all__ = ["parse_bytes", "parse_list", "parse_seconds"]

SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def _quantity(text: str, units: dict[str, float] | dict[str, int], what: str) -> float:
    match = QUANTITY.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise ValueError(f"give {what}")
    return float(match[1]) * units[match[2].lower()]


def parse_seconds(value: object) -> object:
    """Seconds from `90`, `90s`, `1.5m`, `250ms` or `1h`. What is not a string passes as it is."""
    if not isinstance(value, str):
        return value
    seconds = _quantity(value, SECONDS, "a duration such as 90, 90s, 1.5m or 250ms")
    if not math.isfinite(seconds):
        raise ValueError("give a finite duration")
    return seconds


def parse_bytes(value: object) -> object:
    """A size in bytes from `1048576`, `10MiB` or `10MB`. What is not a string passes as it is."""
    if not isinstance(value, str):
        return value
    size = _quantity(value, BYTES, "a size such as 1048576, 64KiB or 10MiB")
    if not size.is_integer():
        raise ValueError("give a size that is a whole number of bytes")
    return int(size)


def parse_list(value: object) -> object:
    """A tuple of the non-empty parts between commas. What is not a string passes as it is.

    Commas alone are no empty list: they are what is left of a template whose values were missing.
    """
    if not isinstance(value, str):
        return value
    parts = tuple(part for part in (piece.strip() for piece in value.split(",")) if part)
    if value.strip() and not parts:
        raise ValueError("give something between the commas")
    return parts

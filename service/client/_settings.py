"""What both clients are made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import httpx

from service import __version__

__all__ = ["BROKE_OFF", "DEFAULT_URL", "JSON", "STREAM", "address", "default_headers", "timeouts"]

DEFAULT_URL: Final = "http://127.0.0.1:8000"
JSON: Final = "application/json"
STREAM: Final = "text/event-stream"
BROKE_OFF: Final = "the stream broke off before its end"
CONNECT_TIMEOUT: Final = 10.0  # seconds


def address(base_url: str) -> httpx.URL:
    """Of the service. Raises ValueError for what is none."""
    try:
        return httpx.URL(base_url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise ValueError(f"{base_url} is no address: {error}") from None


def default_headers(api_key: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers of every request."""
    key = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return {"User-Agent": f"onestep/{__version__}", **key, **(headers or {})}


def timeouts(silence: float) -> httpx.Timeout:
    """`silence`: seconds that the service may send nothing."""
    return httpx.Timeout(silence, connect=CONNECT_TIMEOUT)

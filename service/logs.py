"""Structured logs: one JSON object a line, or a readable line on a terminal. Never image data, never keys.

`log.info("text", extra={"fields": {...}})` adds fields. The request id of the request being served is added to
every line that is written on its behalf.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, Final, Literal, TextIO

import msgspec

__all__ = ["configure_logging", "request_id_var"]

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

MAX_TEXT: Final = 2000  # characters of one message

# Loggers of libraries that say at "info" what the access log or our own lines say already.
QUIET: Final = ("uvicorn", "uvicorn.error", "httpx", "httpcore", "httpx2", "httpcore2", "asyncio", "numba")


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "message": ..., fields..., "traceback": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; what cannot be encoded is shown by its `str`."""
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_TEXT],
        }
        request_id = request_id_var.get()
        if request_id is not None:
            line["request_id"] = request_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except UnicodeEncodeError:  # half a surrogate pair, from an undecodable file name for example
            return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """`12:30:01 info    message  key=value`, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback on those after it. Control characters are escaped."""
        fields = dict(getattr(record, "fields", {}))
        request_id = request_id_var.get()
        if request_id is not None:
            fields.setdefault("request_id", request_id)
        shown = "".join(f"  {key}={value}" for key, value in fields.items() if value is not None)
        message = _printable(record.getMessage()[:MAX_TEXT] + shown)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname.lower():<7} {message}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _timestamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def configure_logging(
    log_format: Literal["auto", "json", "console"], log_level: str, stream: TextIO | None = None
) -> None:
    """Sends every log line of the process to `stream` (standard error), in one format."""
    stream = stream or sys.stderr
    if log_format == "auto":
        log_format = "console" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log_level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)

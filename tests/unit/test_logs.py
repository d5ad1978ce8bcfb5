"""Log lines: one JSON object each, or one for people."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from service.logs import ConsoleFormatter, JsonFormatter, configure_logging, request_id_var


def record(message: str = "hello %s", *args: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.WARNING, __file__, 1, message, args, None)
    made.__dict__.update(more)
    return made


@pytest.fixture
def request_id() -> Iterator[str]:
    """A request is being served."""
    token = request_id_var.set("req_7")
    yield "req_7"
    request_id_var.reset(token)


def test_a_line_is_one_json_object_with_time_level_message_and_request_id(request_id: str) -> None:
    text = JsonFormatter().format(record("hello %s", "wor\nld", fields={"status": 200}))
    assert "\n" not in text
    line = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "logger": "service.x",
        "message": "hello wor\nld",
        "request_id": request_id,
        "status": 200,
    }


def test_outside_a_request_there_is_no_request_id() -> None:
    assert "request_id" not in json.loads(JsonFormatter().format(record("x")))


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()])
def test_a_traceback_is_kept(formatter: logging.Formatter) -> None:
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError as error:
        text = formatter.format(record("failed", exc_info=(type(error), error, error.__traceback__)))
    assert "ZeroDivisionError: why" in text


def test_whatever_is_logged_can_be_written() -> None:
    strange = record("half \ud800 of a pair", fields={"path": "/\udcff", "thing": object()})
    json.loads(JsonFormatter().format(strange))
    ConsoleFormatter().format(strange).encode()


def test_a_line_for_people_shows_fields_and_no_control_characters(request_id: str) -> None:
    text = ConsoleFormatter().format(record("a\x1b[31mb", fields={"status": 200, "empty": None}))
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning a\\x1b\[31mb  status=200  request_id=req_7", text)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A stream to log to; logging is afterwards as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_configured_logging_has_one_format_and_one_place(stream: io.StringIO) -> None:
    configure_logging("auto", "info", stream)
    logging.getLogger("any").info("seen")
    logging.getLogger("any").debug("hidden")
    logging.getLogger("uvicorn.error").info("hidden too")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("careful", UserWarning, stacklevel=1)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "seen"
    assert "careful" in second["message"]


def test_a_terminal_gets_lines_for_people(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "isatty", lambda: True)
    configure_logging("auto", "info", stream)
    logging.getLogger("any").info("seen")
    assert re.fullmatch(r"[\d:]+ info    seen\n", stream.getvalue())

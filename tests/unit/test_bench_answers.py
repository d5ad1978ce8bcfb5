"""What the load generator takes for a right answer, and what it reads from one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.bench.answers import image_steps, read, server_timing, stages
from service.bench.connection import Answer
from service.bench.workloads import Call
from tests.bench_servers import PNG

CALL = Call("mixed", "/v1/generate", b"{}", images=2, image_steps=4)


def answer(**fields: Any) -> Answer:
    return Answer(200, {}, json.dumps({"images": [{"b64_json": PNG}] * 2, **fields}).encode())


def test_as_many_pngs_as_were_asked_for_are_right() -> None:
    assert read(CALL, answer()) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"<html>",
        b'{"error": "busy"}',
        b'{"images": [{"b64_json": "%b"}]}' % PNG.encode(),
        b'{"images": [{"b64_json": "%b"}, {"b64_json": "/9j/4AAQ"}]}' % PNG.encode(),
        b'{"images": [{"b64_json": "%b"}, {"url": "a.png"}]}' % PNG.encode(),
    ],
    ids=["empty", "list", "html", "error", "too few", "a JPEG", "a URL"],
)
def test_anything_else_is_not(body: bytes) -> None:
    assert read(CALL, Answer(200, {}, body)) is None


def test_work_is_what_the_server_says_it_did() -> None:
    said, silent = read(CALL, answer(timesteps=[22, 12, 0])), read(CALL, answer())
    assert said is not None
    assert silent is not None
    assert (image_steps(CALL, said), image_steps(CALL, silent)) == (6, 4)


def test_stages_come_from_the_body_or_else_from_the_header() -> None:
    timed = answer(timings={"queue_ms": 1.5, "total_ms": 3.0})
    timed.headers["server-timing"] = "queue;dur=9"
    body = read(CALL, timed)
    assert body is not None
    assert stages(timed, body) == {"queue": 1.5, "total": 3.0}
    body.timings = None
    assert stages(timed, body) == {"queue": 9.0}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", {}),
        ("queue;dur=1.25, total;dur=3", {"queue": 1.25, "total": 3.0}),
        ('cache;desc=hit, total;desc="all of it";dur="2"', {"total": 2.0}),
        ("db ; DUR = 4 ,app;dur=", {"db": 4.0}),
        ("a;dur=fast, ;;;, b", {}),
    ],
)
def test_server_timing_header(header: str, expected: dict[str, float]) -> None:
    assert server_timing(header) == expected

"""Event streams when something is wrong: slow or vanished readers, deadlines, a drain, a dead engine."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.sse import (
    engines,
    engines_held,
    kill_engine,
    metric,
    open_stream,
    parse,
    read_stream,
    wait_until,
)
from tests.conftest import Server, StartServer
from tests.tiny import tiny_model

LONG = {"batch_size": 4, "steps": 40, "seed": 100}  # a second or so of work


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, large enough for a request to be caught in the middle."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", sample_size=32)


@pytest.fixture(scope="module")
def tiny(start_server: StartServer, model: Path) -> Server:
    """A real server that the tests of this file may ill-treat."""
    return start_server("--model", str(model), "--threads", "1")


def connect(server: Server, **body: Any) -> socket.socket:
    """A connection with a tiny receive buffer that has asked for a stream and reads nothing."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    data = json.dumps(body).encode()
    head = (
        "POST /v1/generate HTTP/1.0\r\nHost: t\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    reader.sendall(head.encode() + data)
    return reader


def read_all(reader: socket.socket) -> list[Any]:
    reader.settimeout(60)
    got = b""
    while piece := reader.recv(1 << 20):
        got += piece
    _, _, rest = got.partition(b"\r\n\r\n")
    # HTTP/1.0 or not, the body is chunked: the lines of chunk sizes are hexadecimal digits only.
    body, position = b"", 0
    while position < len(rest):
        end = rest.index(b"\r\n", position)
        size = int(rest[position:end], 16)
        body += rest[end + 2 : end + 2 + size]
        position = end + 2 + size + 2
    return list(parse(iter(body.decode().splitlines())))


@pytest.mark.slow
def test_a_slow_reader_never_holds_up_the_engine(tiny: Server) -> None:
    """While one reader takes nothing, its own images and others' are made; it loses previews, never an image."""
    body = {"batch_size": 64, "steps": 40, "seed": 0}
    with connect(tiny, **body) as reader:
        wait_until("the request runs", 20, lambda: metric(tiny, "num_requests_running") == 1)
        began = time.monotonic()
        assert httpx.post(f"{tiny.url}/v1/generate", json={"seed": 1}, trust_env=False, timeout=60).status_code == 200
        other = time.monotonic() - began
        wait_until("the engine is done", 120, lambda: metric(tiny, "num_requests_running") == 0)
        whole = time.monotonic() - began
        assert other < max(1.0, whole / 2)
        events = read_all(reader)
    counts = Counter(event.name for event in events)
    assert counts["image"] == 64
    assert counts["done"] == counts["queued"] == 1
    assert counts["step"] < 64 * 39 / 2
    assert events[-1].name == "done"
    shown = [(event.data["index"], event.data["step"]) for event in events if event.name == "step"]
    assert len(set(shown)) == len(shown)


def test_closing_the_connection_cancels_what_is_left(tiny: Server) -> None:
    """The engine stops within a step or two, and the request counts as cancelled."""
    outcome = {"route": "generate", "outcome": "cancelled"}
    before, steps_before = metric(tiny, "requests_total", **outcome), metric(tiny, "image_steps_total", model="tiny")
    with open_stream(tiny.url, batch_size=64, steps=40) as (_, events):
        assert next(events).name == "queued"
        assert next(events).name == "step"
    wait_until("the engine is idle", 3, lambda: metric(tiny, "num_requests_running") == 0)
    wait_until("it is counted", 3, lambda: metric(tiny, "requests_total", **outcome) == before + 1)
    assert metric(tiny, "image_steps_total", model="tiny") - steps_before < 64 * 20


@pytest.mark.slow
def test_a_deadline_ends_the_stream_with_an_error(tiny: Server) -> None:
    """An engine that hangs is no reason to be silent: comments come while it lasts, then the deadline's problem."""
    with open_stream(tiny.url, **LONG, timeout=14) as (response, events):
        request_id = response.headers["x-request-id"]
        while next(events).name != "step":
            pass
        with engines_held(tiny):
            rest = list(events)
    tiny.wait_ready()
    assert "" in [event.name for event in rest]
    last = rest[-1]
    assert last.name == "error"
    assert last.data["type"].endswith("/deadline-exceeded")
    assert last.data["status"] == 504
    assert last.data["request_id"] == request_id
    assert last.data["instance"] == "/v1/generate"
    assert metric(tiny, "request_failures_total", reason="deadline-exceeded") == 1


def test_a_dead_engine_is_replayed_and_repeats_nothing(tiny: Server) -> None:
    """Killed in the middle, the engine comes back; no preview or image comes twice, and the images are the same."""
    expected = {event.data["index"]: event.data for event in read_stream(tiny.url, **LONG) if event.name == "image"}
    restarts = metric(tiny, "engine_restarts_total", reason="killed")
    with open_stream(tiny.url, **LONG) as (_, events):
        seen = []
        for event in events:
            if not event.name:
                continue
            seen.append(event)
            if event.name == "step" and event.data["step"] == 10 and event.data["index"] == 0:
                kill_engine(tiny)
    tiny.wait_ready()
    assert metric(tiny, "engine_restarts_total", reason="killed") == restarts + 1
    shown = Counter((event.data["index"], event.data["step"]) for event in seen if event.name == "step")
    assert set(shown.values()) == {1}
    assert max(step for _, step in shown) == 39
    images = [event.data for event in seen if event.name == "image"]
    assert expected == {image["index"]: image for image in images}
    assert len(images) == 4
    assert seen[-1].name == "done"


@pytest.mark.slow
def test_a_drain_lets_streams_end(start_server: StartServer, model: Path) -> None:
    """SIGTERM in the middle: the stream goes on to its end, then the server leaves with 0."""
    server = start_server("--model", str(model), "--threads", "1")
    with open_stream(server.url, **LONG) as (_, events):
        while next(events).name != "step":
            pass
        server.process.send_signal(signal.SIGTERM)
        counts = Counter(event.name for event in events)
    assert counts["image"] == 4
    assert counts["done"] == 1
    assert server.process.wait(20) == 0


@pytest.mark.slow
def test_a_drain_that_takes_too_long_says_so(start_server: StartServer, model: Path) -> None:
    """When `drain_timeout` passes, a stream ends with the reason, not in the middle of nothing."""
    server = start_server("--model", str(model), "--threads", "1", "--drain-timeout", "1s")
    with open_stream(server.url, **LONG) as (_, events):
        while next(events).name != "step":
            pass
        (engine,) = engines(server)
        engine.suspend()
        server.process.send_signal(signal.SIGTERM)
        rest = [event for event in events if event.name]
    assert rest[-1].name == "error"
    assert rest[-1].data["type"].endswith("/draining")
    assert server.process.wait(20) == 6

"""Reads event streams, with the time at which each event came; and an engine that a test can hold or kill."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from tests.conftest import Server

ENGINE = "service.engine.process"


@dataclass
class Event:
    """One event, or a comment (whose name is empty)."""

    name: str
    data: Any
    came: float  # time.monotonic() seconds


def parse(lines: Iterator[str]) -> Iterator[Event]:
    """Events from the lines of a stream; anything that the contract does not know fails."""
    name, data = None, None
    for line in lines:
        if line.startswith(":"):
            yield Event("", line, time.monotonic())
        elif line.startswith("event: "):
            assert name is None
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            assert data is None
            data = json.loads(line.removeprefix("data: "))
        else:
            assert line == "", line
            if name is not None:
                yield Event(name, data, time.monotonic())
            name, data = None, None
    assert name is None, "the stream ended in the middle of an event"


@contextlib.contextmanager
def open_stream(url: str, path: str = "/v1/generate", **body: Any) -> Iterator[tuple[httpx.Response, Iterator[Event]]]:
    """An answer whose head has come, and its events as they come."""
    headers = {"Accept": "text/event-stream"}
    with (
        httpx.Client(trust_env=False, timeout=120) as client,
        client.stream("POST", url + path, json=body, headers=headers) as response,
    ):
        yield response, parse(response.iter_lines())


def read_stream(url: str, path: str = "/v1/generate", **body: Any) -> list[Event]:
    """All events of a stream, comments left out."""
    with open_stream(url, path, **body) as (response, events):
        assert response.status_code == 200, response.read()
        return [event for event in events if event.name]


def pixels(data: bytes) -> np.ndarray:
    """A picture file as uint8 `[H, W, C]`."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def engines(server: Server) -> list[psutil.Process]:
    """The engine processes of a server that live now."""
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if ENGINE in child.cmdline():
                found.append(child)
    return found


def kill_engine(server: Server) -> None:
    """Kills the engine as the kernel would."""
    (engine,) = engines(server)
    engine.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def engines_held(server: Server) -> Iterator[None]:
    """No engine of the server makes any progress in the block: each one that comes up is stopped."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            for engine in engines(server):
                with contextlib.suppress(psutil.NoSuchProcess):
                    engine.send_signal(signal.SIGSTOP)
            over.wait(0.05)

    for engine in engines(server):
        engine.send_signal(signal.SIGSTOP)
    holder = threading.Thread(target=hold)
    holder.start()
    try:
        yield
    finally:
        over.set()
        holder.join()
        for engine in engines(server):
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.send_signal(signal.SIGCONT)


def metric(server: Server, name: str, **labels: str) -> float:
    """The value of one of the server's metrics; 0 when there is none yet."""
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    wanted = f"onestep_{name}" + (
        "{" + ",".join(f'{k}="{v}"' for k, v in sorted(labels.items())) + "}" if labels else ""
    )
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series == wanted:
            return float(value)
    return 0.0


def wait_until(what: str, seconds: float, condition: Any) -> None:
    """Returns as soon as the condition holds; fails with `what` after that time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)

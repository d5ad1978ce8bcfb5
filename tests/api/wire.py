"""A client that sends exactly the bytes it is told to, and the toy server it talks to."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

JSON_HEAD = b"POST /v1/generate HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The slug of its problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        return str(json.loads(self.body)["type"].rsplit("/", 1)[1])


class Wire:
    """One connection."""

    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._pending = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Wire:
        """Sends these bytes."""
        self.socket.sendall(data)
        return self

    def post(self, body: bytes | dict[str, Any], *headers: bytes) -> Wire:
        """Sends a whole POST to /v1/generate."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = b"".join(header + b"\r\n" for header in headers)
        return self.send(JSON_HEAD + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def get(self, path: str) -> Wire:
        """Sends a whole GET."""
        return self.send(f"GET {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode())

    def answer(self) -> Answer:
        """Reads one answer with a Content-Length; 1xx are passed over."""
        while b"\r\n\r\n" not in self._pending:
            self._read()
        head, self._pending = self._pending.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        if status < 200:
            return self.answer()
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers["content-length"])
        while len(self._pending) < length:
            self._read()
        body, self._pending = self._pending[:length], self._pending[length:]
        return Answer(status, headers, body)

    def closed_within(self, seconds: float) -> bool:
        """Whether the server ends the connection in that time, having sent nothing more."""
        self.socket.settimeout(seconds)
        try:
            return self._pending + self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing comes, not even an end, in that time."""
        return not select.select([self.socket], [], [], seconds)[0]

    def _read(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection before the end of its answer")
        self._pending += data


@dataclass
class Toy:
    """A toy server in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int | None = None
    log: str = field(default="", init=False)
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    def wire(self) -> Wire:
        """A new connection, closed with the toy at the latest."""
        return self.open.enter_context(Wire(self.port))

    def get(self, path: str) -> Answer:
        """One GET on a connection of its own."""
        with self.wire() as wire:
            return wire.get(path).answer()

    def signal(self, number: int = signal.SIGTERM) -> float:
        """Sends a signal; returns the time."""
        self.process.send_signal(number)
        return time.monotonic()

    def exit_code(self, timeout: float = 20.0) -> int:
        """Waits for the end; keeps what it logged in `log`."""
        _, self.log = self.process.communicate(timeout=timeout)
        return self.process.returncode

    def accepts(self) -> bool:
        """Whether it takes a new connection."""
        with contextlib.suppress(ConnectionRefusedError):
            Wire(self.port).socket.close()
            return True
        return False


@contextlib.contextmanager
def toy_server(**settings: object) -> Iterator[Toy]:
    """A toy server with these settings; it is killed in the end if it still lives."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.api.toy_server", *(f"{name}={value}" for name, value in settings.items())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        toy = Toy(process, *map(int, line.split()))
        with process, toy.open:
            yield toy
            if process.poll() is None:
                process.kill()
                process.communicate()
    finally:
        process.kill()

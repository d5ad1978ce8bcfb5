"""A client that takes nothing of its answer is let go after a while; one that is only slow is not."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.api.http_protocol import BoundedHttpProtocol

pytestmark = pytest.mark.anyio

PIECE = b"x" * 65536
PIECES = 200  # 13 MB: more than the kernel keeps for a client that reads nothing


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Impatient(BoundedHttpProtocol):
    """The service's protocol, with less patience."""

    stalled = 1.0


class Endless:
    """Answers with many pieces, and notes whether the client left before the last."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(PIECES):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone.set()


@pytest.fixture
async def endless() -> AsyncIterator[tuple[Endless, int]]:
    """The application and the port on which it is served."""
    app = Endless()
    config = uvicorn.Config(app, http=Impatient, ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listening]))
    yield app, listening.getsockname()[1]
    server.should_exit = True
    await serving


def reader_of(port: int, buffer: int = 4096) -> socket.socket:
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    reader.connect(("127.0.0.1", port))
    reader.sendall(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
    return reader


async def test_one_that_takes_nothing_is_let_go(endless: tuple[Endless, int]) -> None:
    app, port = endless
    began = time.monotonic()
    with await asyncio.to_thread(reader_of, port):
        await asyncio.wait_for(app.gone.wait(), 15)
        assert time.monotonic() - began >= 1.0


async def test_one_that_is_slow_gets_everything(endless: tuple[Endless, int]) -> None:
    """It takes longer than the patience in all, but never as long for a buffer."""

    def read() -> tuple[int, float]:
        began, got = time.monotonic(), 0
        with reader_of(endless[1], 1 << 17) as reader:
            reader.settimeout(20)
            while piece := reader.recv(1 << 18):
                got += len(piece)
                time.sleep(0.02)
        return got, time.monotonic() - began

    got, seconds = await asyncio.to_thread(read)
    assert got > PIECES * len(PIECE)
    assert seconds > 1.0

"""How long the server waits for a head, and for who reads its answer."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.api import http_protocol
from tests.api.test_stalled_reader import PIECE, reader_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


HEAD = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"


class Slow:
    """Answers in two pieces, with a wait between."""

    wait = 1.5

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.sleep(self.wait if scope["path"] == "/slow" else 0)
        await send({"type": "http.response.body", "body": b"b", "more_body": False})


class Impatient(http_protocol.BoundedHttpProtocol):
    stalled = 1.0


async def serving(app: Any, port_of: list[int]) -> tuple[uvicorn.Server, asyncio.Task[None]]:
    config = uvicorn.Config(app, http=Impatient, ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    port_of.append(listening.getsockname()[1])
    return server, asyncio.create_task(server.serve([listening]))


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT", 0.5)
    ports: list[int] = []
    server, task = await serving(Slow(), ports)
    while not server.started:
        await asyncio.sleep(0.01)
    yield ports[0]
    server.should_exit = True
    await task


async def test_a_head_that_does_not_come_ends_the_connection(slow: int) -> None:
    """Neither at the start of a connection nor behind an answer may one be waited for for ever."""
    for sent in (b"", b"GET / HTT", HEAD + b"GET / HTT"):
        reader, writer = await asyncio.open_connection("127.0.0.1", slow)
        writer.write(sent)
        if sent.startswith(HEAD):
            assert (await reader.readuntil(b"ab")).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 3) == b""
        assert time.monotonic() - began > 0.3
        writer.close()


async def test_the_time_for_a_head_ends_with_the_head(slow: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", slow)
    for _ in range(2):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: t\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"ab"), 5)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_second_head_that_trickles_in_ends_the_connection(slow: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", slow)
    writer.write(HEAD)
    assert (await reader.readuntil(b"ab")).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(0.1)
    writer.write(b"GET / HTT")
    assert await asyncio.wait_for(reader.read(), 3) == b""
    writer.close()


async def test_an_answer_that_pauses_after_its_reader_was_slow_is_not_cut_off() -> None:
    class Pausing:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(200):
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(2.0)
            await send({"type": "http.response.body", "body": b"the end", "more_body": False})

    ports: list[int] = []
    server, task = await serving(Pausing(), ports)

    def fetch() -> bytes:
        last = b""
        with reader_of(ports[0], 1 << 17) as reader:
            reader.settimeout(20)
            while piece := reader.recv(1 << 18):
                last = (last + piece)[-100:]
        return last

    assert b"the end" in await asyncio.to_thread(fetch)
    server.should_exit = True
    await task


async def test_lines_between_requests_do_not_keep_a_connection(slow: int) -> None:
    """Each ends uvicorn's wait for the next request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", slow)
    writer.write(HEAD)
    assert (await reader.readuntil(b"ab")).startswith(b"HTTP/1.1 200")
    end = asyncio.create_task(reader.read())
    for _ in range(10):
        writer.write(b"\r\n")
        if await asyncio.wait((end,), timeout=0.2) != (set(), {end}):
            break
    assert end.done()
    assert end.result() == b""
    writer.close()

"""Small HTTP servers on loopback for the tests of the load generator: real sockets, answers of one's choice."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

PNG = "iVBORw0KGgoAAAANSUhEUgAA"  # what any PNG begins with, in base64


class Asked(NamedTuple):
    """A request as it came."""

    connection: int  # 0 is the first that was made
    number: int  # on its connection, 0 is the first
    line: str  # POST /v1/generate HTTP/1.1
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The JSON body."""
        fields: dict[str, Any] = json.loads(self.body)
        return fields


Answer = Callable[[Asked], Awaitable[bytes]]


def response(body: bytes, status: str = "200 OK", headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP answer."""
    head = {"Content-Type": "application/json", "Content-Length": str(len(body))} | dict(headers or {})
    return "\r\n".join([f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in head.items()), "", ""]).encode() + body


def pictures(count: int, **fields: Any) -> bytes:
    """A right answer with so many images."""
    return response(json.dumps({"images": [{"b64_json": PNG}] * count, **fields}).encode())


async def right(asked: Asked) -> bytes:
    """As many images as were asked for."""
    return pictures(asked.fields["batch_size"])


class SmallServer:
    """A server in a thread of its own; a context manager. An answer without bytes closes the connection."""

    def __init__(self, answer: Answer = right, *, closes: bool = False) -> None:
        """`closes`: it ends every connection after an answer, without having said so."""
        self.asked: list[Asked] = []
        self.connections = 0
        self._answer = answer
        self._closes = closes
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    async def _main(self) -> None:
        self._loop, self._end, self._tasks = asyncio.get_running_loop(), asyncio.Event(), set[asyncio.Task[None]]()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1000)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection, self.connections = self.connections, self.connections + 1
        try:
            await self._serve(connection, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, connection: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while True:
            line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            asked = Asked(connection, number, line, headers, body)
            self.asked.append(asked)
            answer = await self._answer(asked)
            writer.write(answer)
            await writer.drain()
            if self._closes or not answer:
                return
            number += 1

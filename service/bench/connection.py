"""HTTP/1.1 for a load generator that shares its machine with the server: connections, no more.

httpx takes several times the processor time for a request, which the server under test then lacks. This is
httptools, the parser that the server itself uses, on an asyncio transport.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

__all__ = ["Answer", "Broken", "Pool"]

CONNECT_TIMEOUT: Final = 10.0  # seconds


class Broken(Exception):
    """No whole answer came: the connection could not be made, ended early, or carried something else than HTTP."""


@dataclass(slots=True)
class Answer:
    """A whole answer; header names are in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Connection(asyncio.Protocol):
    """One kept-alive connection; one request at a time."""

    def __init__(self) -> None:
        self.usable = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._chunks: list[bytes] = []
        self._waiting: asyncio.Future[Answer] | None = None
        self.heard = False  # whether anything came in answer to the present request

    async def send(self, request: bytes) -> Answer:
        """The answer to a request, head and body. Raises `Broken`; cancelling closes the connection."""
        if self._transport is None or not self.usable:
            raise Broken("the connection is closed")
        self.usable = self.heard = False
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiting
        except BaseException:
            self.close()
            raise
        finally:
            self._waiting = None

    def close(self) -> None:
        """Ends the connection at once, and with it what the server still does for it."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.usable = True

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.usable = False
        self._fail(str(exc) if exc else "the server closed the connection")

    def on_message_begin(self) -> None:
        """Called by httptools, as the methods below."""
        self._answer, self._chunks = Answer(), []

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line."""
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._answer.status = self._parser.get_status_code()
        self._answer.body = b"".join(self._chunks)
        self.usable = self._parser.should_keep_alive()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(self._answer)
        if not self.usable:
            self.close()

    def _fail(self, reason: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Broken(reason))


class Pool:
    """As many connections to one server as there are requests at a time; idle ones are used again, latest first."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """`url` may have a path, which stands before that of every request. Raises ValueError for what is no URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no http:// or https:// URL")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path.rstrip("/")
        key = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._headers = {"Host": parts.netloc.rpartition("@")[2], "Accept": "application/json", **key}
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})
    ) -> Answer:
        """One request with a JSON body, if any, and more headers, if any. Raises `Broken`.

        A kept-alive connection that the server closed just now is replaced once.
        """
        content = {"Content-Type": "application/json", "Content-Length": str(len(body))} if body else {}
        data = _head(method, self._prefix + path, {**self._headers, **content, **headers}) + body
        while self._idle:
            connection = self._idle.pop()
            if not connection.usable:
                self._all.discard(connection)
                continue
            try:
                return await self._send(connection, data)
            except Broken:
                if connection.heard:
                    raise
                break
        return await self._send(await self._connect(), data)

    async def _send(self, connection: Connection, data: bytes) -> Answer:
        try:
            return await connection.send(data)
        finally:
            if connection.usable:
                self._idle.append(connection)
            else:
                self._all.discard(connection)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._ssl)
        except (OSError, TimeoutError) as error:
            raise Broken(str(error) or "no connection in time") from error
        self._all.add(connection)
        return connection

    def close(self) -> None:
        """Ends all connections."""
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

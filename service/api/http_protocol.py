"""uvicorn's HTTP/1.1 protocol, bounded in what of a request is no body; problem documents for what is no HTTP."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.middleware.frame import new_request_id
from service.api.problems import MEDIA_TYPE, PROBLEMS, TYPE_PREFIX

__all__ = ["BoundedHttpProtocol"]

log = logging.getLogger(__name__)

MAX_HEAD: Final = 64 * 1024  # bytes of request line, headers and trailers
FRAMING: Final = 8  # more of them for each byte of the body: what chunks of single bytes take
HEAD_TIMEOUT: Final = 30.0  # seconds from the connection, or from the first byte of a later request
MAX_PIPELINE: Final = 64  # requests of one connection that wait behind one that is not answered
CLOSE: Final = (b"connection", b"close")
BODY: Final = (b"content-length", b"transfer-encoding")
STALLED: Final = 300.0  # seconds in which a client takes nothing of its answer, and the buffer to it is full


class EnoughError(Exception):
    """Ends the parsing of what else has been read."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """A head may neither grow without end nor trickle in for ever, and an answer may not wait for ever.

    Nor may what frames a chunked body, or trails it, grow without end. Trailers are dropped: nobody wants them.
    Nothing is upgraded: what asks for it is answered, and is the last that its connection is read for, for the parser
    takes what follows for another protocol's.
    """

    stalled = STALLED

    _in_head = True
    _upgrade = False  # has been asked for
    _under_way = False  # a request has begun and has not ended
    _excess = 0  # bytes of it, less those that its body accounts for
    _read = 0  # bytes that are being parsed, while no request has begun in them
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection that sends nothing is closed after `HEAD_TIMEOUT`."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._head_timed_out)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the timers with the connection."""
        self._disarm()
        self._disarm_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The buffer is full: the client has some time to take of it."""
        super().pause_writing()
        self._disarm_stall()
        self._stall_timer = self.loop.call_later(self.stalled, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self._disarm_stall()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= MAX_PIPELINE:
            self.transport.abort()
            raise EnoughError
        self._in_head = self._under_way = True
        self._excess, self._read = self._read, 0  # of one that begins behind another the rest of a read is not counted
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; one that comes after the head is a trailer."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_head = False
        self._upgrade = self.parser.should_upgrade()
        if self._upgrade:
            self._refuse_body()
            self.headers.append(CLOSE)
        super().on_headers_complete()
        if self._upgrade:
            self.cycle.keep_alive = False

    def _refuse_body(self) -> None:
        """Nobody could tell it from a request of its own: the parser has stopped at the head."""
        if not any(name in BODY and value != b"0" for name, value in self.headers):
            return
        if self.cycle is None or self.cycle.response_complete:
            self._refuse("bad-request", "A request with a body cannot ask for another protocol (Upgrade).")
        else:
            self.transport.abort()
        raise EnoughError

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._excess -= len(body) * (1 + FRAMING)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It has ended."""
        self._under_way = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, then looks whether a request is still under way, and what came of it that is no body."""
        if self._upgrade:
            return
        if self._under_way:
            self._excess += len(data)
        else:
            self._read = len(data)
        super().data_received(data)
        if not self._in_head:
            self._disarm()
            # a line between requests ended uvicorn's wait for the next one: it is that one's beginning
            idle = self.cycle is not None and self.cycle.response_complete and self.timeout_keep_alive_task is None
            self._in_head = not self._under_way and idle
        if self.transport.is_closing():
            return
        if self._under_way and self._excess > MAX_HEAD:
            self._end_excess()
        elif self._in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._head_timed_out)

    def _end_excess(self) -> None:
        if self._in_head or not self.cycle.response_started:
            self._refuse("head-too-large", f"The head of a request has at most {MAX_HEAD} bytes here.")
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what its parser does not understand."""
        if self.transport.is_closing():
            return
        self._refuse("bad-request", "This is not an HTTP/1.1 request.")

    def _unsupported_upgrade_warning(self) -> None:
        log.debug("an upgrade was asked for and not made")

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _disarm_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, slug: str, detail: str) -> None:
        status, title = PROBLEMS[slug]
        request_id = new_request_id()
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + slug,
            "title": title,
            "status": status,
            "detail": detail,
            "request_id": request_id,
        }
        body = msgspec.json.encode(document)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        self.transport.close()

"""Bounds on a request body: its encoding, its size, the time it may take."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import ProblemError, problem_response

__all__ = ["BodyLimits"]

HELD: Final = 256 * 2**20  # bytes of all bodies that are being received or used
LINGER: Final = 1.0  # seconds: how long an unread body is still taken in after the answer
PROMPT: Final = 0.02  # seconds: the rest of a body that is as good as here


class BodyLimits:
    """Pure ASGI middleware: 415, 413 and 408, before or while a body is read.

    An answer given before the whole body was read ends the connection. The body is then read and dropped for a
    moment, because closing at once would reset the connection and take the answer away from the client.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._room = _Room(max(HELD, 4 * max_bytes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with a bounded body, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length, chunked, encoded = _described(scope)
        if not length and not chunked:
            await self.app(scope, receive, send)
            return
        body = _Body(receive, send, self._max_bytes, self._timeout, self._room)
        problem = None
        if encoded:
            problem = ProblemError(
                "unsupported-media-type",
                "Send the body as it is, without Content-Encoding.",
                headers={"Accept-Encoding": "identity"},
            )
        elif length > self._max_bytes:
            problem = body.too_large()
        if problem is not None:
            await problem_response(scope, problem)(scope, body.receive, body.send)
            return
        try:
            await self.app(scope, body.receive, body.send)
        finally:
            self._room.left += body.held


def _described(scope: Scope) -> tuple[int, bool, bool]:
    """What the head says: length in bytes, whether it is chunked, whether it is encoded (compressed)."""
    length, chunked, encoded = 0, False, False
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            length = int(value[:19])
        elif name == b"transfer-encoding":
            chunked = True
            encoded = encoded or value.strip().lower() != b"chunked"
        elif name == b"content-encoding":
            encoded = encoded or value.strip().lower() not in (b"", b"identity")
    return length, chunked, encoded


class _Room:
    """What all bodies together may still take, in bytes."""

    def __init__(self, left: int) -> None:
        self.left = left


class _Body:
    """One request's body on its way in, and the answer on its way out."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, timeout: float, room: _Room) -> None:
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._room = room
        self.held = 0  # bytes of it that take room
        self._deadline: float | None = None
        self._taken = 0
        self._complete = False
        self._too_large = False
        self._must_close = False

    def too_large(self) -> ProblemError:
        """The refusal of a body over the limit, which ends the connection even if the rest is as good as here."""
        self._too_large = True
        return ProblemError("body-too-large", f"A body has at most {self._max_bytes} bytes here.")

    async def receive(self) -> Message:
        """The next piece. Raises `ProblemError` for a body that is too large, too slow, or one too many."""
        if self._complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            detail = f"The body was not received within {self._timeout:g} s."
            raise ProblemError("body-timeout", detail) from None
        self._note(message)
        if self._taken > self._max_bytes:
            raise self.too_large()
        size = len(message.get("body", b""))
        if size > self._room.left:
            detail = "The bodies of other requests take all the room that there is."
            raise ProblemError("overloaded", detail, headers={"Retry-After": "1"})
        self._room.left -= size
        self.held += size
        return message

    def _note(self, message: Message) -> None:
        self._taken += len(message.get("body", b""))
        self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

    async def send(self, message: Message) -> None:
        """Passes the answer on; one that comes before the end of the body closes the connection."""
        if message["type"] == "http.response.start":
            if not self._too_large:
                await self._drop(PROMPT)
            self._must_close = self._too_large or not self._complete
            if self._must_close:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        elif self._must_close and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drop(LINGER)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drop(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not self._complete:
                    self._note(await self._receive())
        except TimeoutError:
            pass

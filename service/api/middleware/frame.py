"""What every answer has: a request id and the security headers."""

from __future__ import annotations

import os
import re
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.lifecycle import Lifecycle
from service.logs import request_id_var

__all__ = ["Frame", "new_request_id"]

OWN_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

# Pages bring a policy of their own; whatever else a browser is led to open may load and run nothing.
SECURITY: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
NO_PAGE: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox")


def new_request_id() -> str:
    """`req_` and a ULID: 48 bits of milliseconds, 80 random bits, sortable by time."""
    number = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), "big")
    return "req_" + "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


class Frame:
    """Pure ASGI middleware: gives each request its id, and each answer its id and security headers."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self.app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with `state["request_id"]` and `state["arrived"]` (monotonic seconds) set."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        own = given[0] if len(given) == 1 and OWN_ID.fullmatch(given[0]) else None
        request_id = own.decode() if own else new_request_id()
        scope.setdefault("state", {}).update(request_id=request_id, arrived=time.monotonic())
        token = request_id_var.set(request_id)

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode()), *SECURITY]
                if not any(name == NO_PAGE[0] for name, _ in headers):
                    headers.append(NO_PAGE)
                if self._lifecycle.closing and not any(name == b"connection" for name, _ in headers):
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, framed)
        finally:
            request_id_var.reset(token)

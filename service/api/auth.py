"""API keys, and who a client is."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.middleware.paths import route_path
from service.api.problems import ProblemError, problem_response

__all__ = ["ApiKeys", "client_of"]

FREE_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz", "/", "/docs", "/openapi.json"})
FREE_FOLDERS: Final = ("/docs/", "/static/")  # what the pages are made of
IMAGES: Final = "/v1/images/"
MAX_NAME: Final = 64  # characters of a client's name

_SALT: Final = os.urandom(32)  # the names of clients say nothing about their keys, and change with each start


def client_of(request: Request) -> str:
    """Whom to be fair to: the client by its key, else by its address."""
    client: str = request.scope["state"]["client"]
    return client


class ApiKeys:
    """Pure ASGI middleware: names the client, and with keys set lets only those in who have one."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], public_images: bool) -> None:
        self.app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._public_images = public_images

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with `state["client"]` set, or answers 401."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["client"] = _by_address(scope)
        if self._digests:
            key = self._valid_key(scope)
            if key is not None:
                state["client"] = "key-" + hashlib.blake2b(key, key=_SALT, digest_size=8).hexdigest()
            elif not self._is_free(scope):
                problem = ProblemError(
                    "unauthorized",
                    "Send a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`.",
                    headers={"WWW-Authenticate": 'Bearer realm="onestep"'},
                )
                await problem_response(scope, problem)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _valid_key(self, scope: Scope) -> bytes | None:
        for name, value in scope["headers"]:
            if name == b"x-api-key":
                key = value
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                key = value[7:].strip()
            else:
                continue
            digest = hashlib.sha256(key).digest()
            # Every key is compared, and in constant time: how long it takes says nothing.
            if sum(hmac.compare_digest(digest, known) for known in self._digests):
                return bytes(key)
        return None

    def _is_free(self, scope: Scope) -> bool:
        method, path = scope["method"], route_path(scope)
        if method == "OPTIONS" or path in FREE_PATHS:
            return True
        if method not in ("GET", "HEAD"):
            return False
        return path.startswith(FREE_FOLDERS) or (self._public_images and path.startswith(IMAGES))


def _by_address(scope: Scope) -> str:
    """The address as a client's name; one IPv6 subscriber has a /64, and so one name."""
    host: str = scope["client"][0] if scope.get("client") else "unknown"
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:  # a proxy that is believed wrote it
            return host[:MAX_NAME]
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.IPv6Network((address, 64), strict=False))
    return host[:MAX_NAME]

"""The access log and the http_* metrics: one line and one observation for each request."""

from __future__ import annotations

import logging
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

__all__ = ["Access", "handler_of"]

log = logging.getLogger("onestep.access")

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PROBES: Final = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
MAX_PATH: Final = 512
GONE: Final = 499  # what proxies write for a client that left before its answer


def handler_of(scope: Scope) -> str:
    """The template of the route that took a request, from a closed set; `unmatched` when none did."""
    route = scope.get("route")
    return getattr(route, "path_format", None) or getattr(route, "path", None) or "unmatched"


class Access:
    """Pure ASGI middleware: measures from the request's head to the end of its answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, and records how it ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status, sent = GONE, 0
        has_body = scope["method"] != "HEAD"

        async def measured(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif has_body:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, measured)
        finally:
            self._record(scope, status, sent, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, sent: int, seconds: float) -> None:
        handler = handler_of(scope)
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.http_requests.labels(handler, method, status).inc()
        self._metrics.http_request_duration.labels(handler).observe(seconds)
        level = logging.DEBUG if handler in PROBES else logging.INFO
        if log.isEnabledFor(level):
            state = scope["state"]
            fields = {
                "method": method,
                "path": scope["path"][:MAX_PATH],  # never the query
                "handler": handler,
                "status": status,
                "duration_ms": round(seconds * 1e3, 3),
                "bytes": sent,
                "client": state.get("client"),
            }
            log.log(level, "request", extra={"fields": fields})

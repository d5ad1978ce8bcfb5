"""Opens the routes to pages of chosen origins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import ProblemError, problem_response

__all__ = ["Cors"]

METHODS: Final = ("GET", "HEAD", "POST", "OPTIONS")
EXPOSED: Final = (
    "Content-Disposition",
    "Content-Length",
    "ETag",
    "Retry-After",
    "Server-Timing",
    "X-Class-Label",
    "X-Model-Revision",
    "X-Request-ID",
    "X-Seed",
)


class Cors(CORSMiddleware):
    """Starlette's middleware with this service's headers; a refused preflight is a problem document too."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=("*",),  # clients of other services send headers of their own
            expose_headers=EXPOSED,
            max_age=3600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Marks the request, for `preflight_response` sees its headers only."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            if "origin" in headers and "access-control-request-method" in headers:
                answer: Response = self.preflight_response(request_headers=headers)
                if answer.status_code >= 400:
                    detail = "The origin or the method is not open to pages of other origins."
                    refusal = problem_response(scope, ProblemError("bad-request", detail))
                    refusal.headers["Vary"] = answer.headers["Vary"]
                    answer = refusal
                await answer(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

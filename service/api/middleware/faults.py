"""The last net: what no handler expected becomes a 500 problem, with its traceback in the log."""

from __future__ import annotations

import logging

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import ProblemError, problem_response

__all__ = ["Faults"]

log = logging.getLogger(__name__)


class Faults:
    """Pure ASGI middleware, inside the request id and CORS so that a 500 carries both."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; answers 500 when that raises."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            return  # nobody is left to answer
        except Exception as error:
            if scope["type"] != "http":
                raise
            log.error("unexpected %s while serving a request", type(error).__name__, exc_info=error)
            if started:
                return  # the answer stays unfinished, and the server closes the connection
            detail = "A fault of ours; the log has it under this request id."
            await problem_response(scope, ProblemError("internal-error", detail))(scope, receive, send)

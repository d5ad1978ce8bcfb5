"""Serves the application: listens, reacts to signals, drains, and leaves with the right exit code.

    SIGTERM --> /readyz 503 -- drain_delay --> listener closed -- at most drain_timeout --> engines ended, exit
                               still accepting                    accepted requests are answered

A second SIGTERM ends it at once. SIGINT is the same as SIGTERM. An engine that says that nothing will ever be
served again ends it too, with a code of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import time
from typing import Final

import uvicorn
from fastapi import FastAPI

from service import __version__
from service.api.context import Context
from service.api.http_protocol import BoundedHttpProtocol
from service.api.lifecycle import Lifecycle
from service.api.listening import BACKLOG
from service.engine.client import Fatality
from service.exits import ExitCode

__all__ = ["Server", "believed"]

log = logging.getLogger(__name__)

KEEP_ALIVE: Final = 75  # seconds; longer than balancers keep theirs, so that they are the ones who close
GRACE: Final = 0.1  # seconds from closing the listener: requests that are under way to open connections arrive
LAST_WORDS: Final = 1.0  # seconds for answers that say why a request was given up
FATAL_GRACE: Final = 5.0  # seconds for answers when the engine is gone for good
CLOSE_WITHIN: Final = 5.0  # seconds that ending the engines may take


def believed(places: tuple[str, ...]) -> list[str]:
    """Addresses and networks of proxies, those of IPv4 also as sockets for both versions of IP name them."""
    networks = [ipaddress.ip_network(place) for place in places if place != "*"]
    mapped = [f"::ffff:{four.network_address}/{96 + four.prefixlen}" for four in networks if four.version == 4]
    return [*places, *mapped]


def _address(listening: socket.socket) -> str:
    """As a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Listener(uvicorn.Server):
    """uvicorn's accept loop and connections; start, signals and end are ours."""

    def __init__(self, app: FastAPI, forwarded_allow_ips: tuple[str, ...]) -> None:
        config = uvicorn.Config(
            app,
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(forwarded_allow_ips),
            forwarded_allow_ips=believed(forwarded_allow_ips),
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
        )
        config.load()
        super().__init__(config)
        self.lifespan = config.lifespan_class(config)
        self._ticking: asyncio.Task[None] | None = None

    async def open(self, listening: socket.socket) -> None:
        await self.on_tick(0)  # sets the Date header
        await self.startup(sockets=[listening])
        self._ticking = asyncio.create_task(self.main_loop())

    def close(self) -> None:
        """Stops accepting."""
        for server in self.servers:
            server.close()

    def end_connections(self) -> None:
        """Closes idle connections, and the others after the answer they wait for."""
        for connection in list(self.server_state.connections):
            connection.shutdown()

    @property
    def busy(self) -> bool:
        """Whether a connection is open or a request is being served."""
        return bool(self.server_state.connections or self.server_state.tasks)

    async def abort(self) -> None:
        """Ends what is left, unanswered."""
        self.close()
        if self._ticking is not None:
            self._ticking.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.sleep(0)


class Server:
    """One life of the service, from the open sockets to the exit code."""

    def __init__(
        self, app: FastAPI, listening: socket.socket, metrics: tuple[FastAPI, socket.socket] | None = None
    ) -> None:
        context: Context = app.state.context
        self._app = app
        self._settings = context.settings
        self._engine = context.engine
        self._lifecycle: Lifecycle = app.state.lifecycle
        self._listening = listening
        self._listener = _Listener(app, context.settings.forwarded_allow_ips)
        self._metrics = metrics
        self._metrics_listener = _Listener(metrics[0], ()) if metrics else None
        self._signals = 0
        self._first_signal = asyncio.Event()
        self._second_signal = asyncio.Event()

    async def run(self) -> ExitCode:
        """Serves until a signal or a fatal engine, and returns how it ended. No child is left."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        await self._listener.open(self._listening)
        if self._metrics and self._metrics_listener:
            await self._metrics_listener.open(self._metrics[1])
        log.info("onestep %s listens on %s%s", __version__, _address(self._listening), self._settings.root_path)
        if self._metrics:
            log.info("metrics are on %s/metrics", _address(self._metrics[1]))
        gc.collect()
        gc.freeze()  # what was imported stays; later collections need not look at it
        try:
            async with self._app.router.lifespan_context(self._app):
                watching = asyncio.create_task(self._tell_when_ready())
                try:
                    return await self._until_end()
                finally:
                    watching.cancel()
        finally:
            await self._listener.abort()
            if self._metrics_listener:
                await self._metrics_listener.abort()

    async def _until_end(self) -> ExitCode:
        fatal = self._engine.fatal
        signalled = asyncio.ensure_future(self._first_signal.wait())
        await asyncio.wait((fatal, signalled), return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        self._lifecycle.draining = True
        if fatal.done():
            return await self._give_up(fatal.result())
        return await self._drain()

    async def _drain(self) -> ExitCode:
        settings = self._settings
        log.info(
            "stopping: accepting for %g s more, then at most %g s for what was accepted",
            settings.drain_delay,
            settings.drain_timeout,
        )
        if not await self._second_signal_within(settings.drain_delay):
            await self._close_listener()
            if await self._idle_within(settings.drain_timeout):
                log.info("stopped; everything accepted was answered")
                return ExitCode.OK
        if self._second_signal.is_set():
            log.warning("ended at once by a second signal")
            await self._close_engine()
            return ExitCode.FORCED
        log.error("drain_timeout has passed; giving up what is left")
        await self._close_engine()  # fails what waits for images, which is answered with the reason
        await self._idle_within(LAST_WORDS)
        return ExitCode.DRAIN_TIMEOUT

    async def _give_up(self, fatality: Fatality) -> ExitCode:
        log.error("nothing can be served: %s", fatality.reason)
        await self._close_listener()
        await self._idle_within(FATAL_GRACE)
        return ExitCode.ENGINE if fatality.budget_spent else ExitCode.MODEL

    async def _close_listener(self) -> None:
        self._listener.close()
        self._lifecycle.closing = True
        await asyncio.sleep(GRACE)
        self._listener.end_connections()

    async def _idle_within(self, seconds: float) -> bool:
        """Whether all connections ended in time. False at once on a second signal."""
        end = time.monotonic() + seconds
        while self._listener.busy:
            left = end - time.monotonic()
            if left <= 0 or await self._second_signal_within(min(0.02, left)):
                return False
        return True

    async def _second_signal_within(self, seconds: float) -> bool:
        if seconds > 0 and not self._second_signal.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._second_signal.wait(), seconds)
        return self._second_signal.is_set()

    async def _close_engine(self) -> None:
        try:
            await asyncio.wait_for(self._engine.close(), CLOSE_WITHIN)
        except TimeoutError:
            log.error("the engines did not end within %g s", CLOSE_WITHIN)

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        log.info("%s received", signal.Signals(number).name)
        (self._first_signal if self._signals == 1 else self._second_signal).set()

    async def _tell_when_ready(self) -> None:
        began = time.monotonic()
        while self._engine.not_ready_reason is not None:  # noqa: ASYNC110 (a log line is not worth an event)
            await asyncio.sleep(0.1)
        log.info("ready after %.1f s", time.monotonic() - began)

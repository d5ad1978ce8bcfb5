"""Ways to reach an engine: a spawned process behind a socketpair, or a thread of this process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from service.engine.inbox import Inbox
from service.engine.protocol import (
    HEADER,
    Configure,
    Crashed,
    Fatal,
    FromEngine,
    Ping,
    Pong,
    ToEngine,
    body_length,
    decode_from_engine,
    frame,
)
from service.environment import without_secrets
from service.errors import FatalModelError

log = logging.getLogger(__name__)

OnMessage = Callable[[FromEngine], None]
OnLost = Callable[[], None]


class Link(Protocol):
    """One engine's life. `on_lost` is called once, when it no longer listens."""

    def send(self, message: ToEngine) -> None:
        """Hands a message over; one to an engine that is gone is dropped."""

    def kill(self) -> None:
        """Ends the engine now; `on_lost` follows."""

    async def gone(self) -> None:
        """Waits until nothing of the engine is left."""

    @property
    def killed(self) -> bool:
        """Whether, once gone, it was ended from outside rather than by a fault of its own."""


Connect = Callable[[OnMessage, OnLost], Awaitable[Link]]


class _FrameReader(asyncio.Protocol):
    """Cuts the byte stream into messages."""

    def __init__(self, on_message: OnMessage, on_lost: OnLost) -> None:
        self._buffer = bytearray()
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            messages = self._cut()
        except (ValueError, msgspec.MsgspecError):
            log.exception("the engine sent what is no message")
            if self._transport is not None:
                self._transport.close()
            return
        for message in messages:
            self._on_message(message)

    def _cut(self) -> list[FromEngine]:
        """The messages that are whole, taken out of the buffer."""
        messages: list[FromEngine] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            begin = start + HEADER.size
            end = begin + body_length(bytes(self._buffer[start:begin]))
            if len(self._buffer) < end:
                break
            messages.append(decode_from_engine(bytes(self._buffer[begin:end])))
            start = end
        del self._buffer[:start]
        return messages

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()


class ProcessLink:
    """An engine in its own process, spawned, with the other end of a socketpair as its only channel."""

    def __init__(self, process: asyncio.subprocess.Process, transport: asyncio.Transport) -> None:
        self._process = process
        self._transport = transport

    @classmethod
    async def connect(cls, on_message: OnMessage, on_lost: OnLost) -> ProcessLink:
        """Spawns an engine; it waits for `Configure`. Raises OSError when there is no room for one."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "service.engine.process", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=without_secrets(os.environ),
                )
        except BaseException:
            ours.close()
            raise
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: _FrameReader(on_message, on_lost), sock=ours
        )
        return cls(process, transport)

    def send(self, message: ToEngine) -> None:
        """Buffers without limit: the engine reads all the time, in a thread of its own."""
        if not self._transport.is_closing():
            self._transport.write(frame(message))

    def kill(self) -> None:
        """SIGKILL, which also ends a stopped or hanging engine."""
        self._transport.close()
        if self._process.returncode is None:
            self._process.kill()

    async def gone(self) -> None:
        """Waits for the process and reaps it."""
        await self._process.wait()

    @property
    def killed(self) -> bool:
        """SIGKILL: an operator, the kernel's out-of-memory killer, or `kill`."""
        return self._process.returncode == -signal.SIGKILL


class ThreadLink:
    """An engine in a thread of this process, for tests and for embedding; gives no crash isolation."""

    def __init__(self, on_message: OnMessage, on_lost: OnLost) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_lost = on_lost
        self._inbox = Inbox()
        self._thread: threading.Thread | None = None
        self._gone = asyncio.Event()

    @classmethod
    async def connect(cls, on_message: OnMessage, on_lost: OnLost) -> ThreadLink:
        """An engine thread; it starts with `Configure`."""
        return cls(on_message, on_lost)

    def send(self, message: ToEngine) -> None:
        """Starts the thread with `Configure`, then fills its inbox."""
        if isinstance(message, Configure):
            self._thread = threading.Thread(target=self._run, args=(message,), daemon=True, name="engine")
            self._thread.start()
        elif isinstance(message, Ping):
            self._on_message(Pong())
        else:
            self._inbox.put(message)

    def kill(self) -> None:
        """Ends the engine after the step that runs; a thread cannot be ended sooner."""
        self._inbox.close()
        if self._thread is None:
            self._lost()

    async def gone(self) -> None:
        """Waits for the thread to leave."""
        await self._gone.wait()

    @property
    def killed(self) -> bool:
        """Nobody kills a thread."""
        return False

    def _run(self, configure: Configure) -> None:
        from service.engine.worker import run_engine

        try:
            run_engine(configure, self._inbox, self._emit)
        except FatalModelError as error:
            self._emit(Fatal(str(error)))
        except Exception as error:
            log.exception("the engine thread crashed")
            self._emit(Crashed(f"{type(error).__name__}: {error}"))
        self._loop.call_soon_threadsafe(self._lost)

    def _emit(self, *messages: FromEngine) -> None:
        for message in messages:
            self._loop.call_soon_threadsafe(self._on_message, message)

    def _lost(self) -> None:
        self._gone.set()
        self._on_lost()

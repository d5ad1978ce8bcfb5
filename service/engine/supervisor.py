"""Keeps one engine alive: starts it, watches it, replaces it with backoff, counts its restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from service.engine.links import Connect, Link
from service.engine.protocol import (
    Configure,
    Crashed,
    EngineConfig,
    Fatal,
    FromEngine,
    Ping,
    Pong,
    Ready,
    StepEnded,
    StepStarted,
    ToEngine,
)
from service.models.info import ModelInfo

log = logging.getLogger(__name__)

TICK = 0.25  # seconds between looks at the engine
PING_EVERY = 4  # ticks
SILENCE = 5.0  # seconds without any message from a ready engine
LOADING_SILENCE = 60.0  # the same while it loads: importing torch can keep its reader waiting on a cold disk
PROGRESS = 5.0  # least seconds for a step before it counts as hanging ...
PROGRESS_FACTOR = 10  # ... or this many times its certified time, if that is more
RESTART_WINDOW = 600.0  # seconds in which restarts are counted
BACKOFF = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before the 1st, 2nd, ... restart within BACKOFF_WINDOW
BACKOFF_WINDOW = 60.0
LEAVING = 0.5  # seconds in which an engine that closed its socket may leave by itself


class Cause(Enum):
    """Why an engine is gone; the closed label set of `onestep_engine_restarts_total`."""

    CRASHED = "crashed"  # a fault of its own: an exception, a segmentation fault
    KILLED = "killed"  # SIGKILL by somebody else, perhaps the kernel short of memory
    HANG = "hang"
    SILENT = "silent"
    FATAL = "fatal"


class Listener(Protocol):
    """Whom a supervisor tells."""

    def on_ready(self, engine: Supervisor, ready: Ready) -> None:
        """The engine can take work."""

    def on_message(self, engine: Supervisor, message: FromEngine) -> None:
        """Everything else it says, pings aside."""

    def on_lost(self, engine: Supervisor, suspects: tuple[int, ...], cause: Cause) -> None:
        """It is gone, and with it what it had; `suspects` were in the forward that ran."""

    def on_fatal(self, reason: str, *, budget_spent: bool) -> None:
        """It will not be started again."""


@dataclass
class Executing:
    """A step that is under way, and the seconds for which it has been."""

    step: StepStarted
    age: float = 0.0

    @property
    def hangs(self) -> bool:
        """Whether it takes longer than any step should, whatever other steps do."""
        return self.age > max(PROGRESS, PROGRESS_FACTOR * self.step.expected)


class Supervisor:
    """One engine on one device, through all its lives."""

    def __init__(
        self,
        config: EngineConfig,
        models: Sequence[ModelInfo],
        connect: Connect,
        listener: Listener,
        max_restarts: int,
    ) -> None:
        self.config = config
        self.ready = False
        self.load_seconds = 0.0  # how long the last start took
        self._models = tuple(models)
        self._connect = connect
        self._listener = listener
        self._max_restarts = max_restarts
        self._link: Link | None = None
        self._lost = asyncio.Event()
        self._cause: Cause | None = None
        self._reason: str | None = None  # what an engine said of its own crash
        self._fatal: str | None = None
        self._closing = asyncio.Event()
        self._executing: list[Executing] = []  # several, where one starts before another is over
        self._silent = 0.0
        self._stalled = 0.0
        self._restarts: deque[float] = deque()
        self.outstanding = 0  # image-steps the listener has sent here; without any the engine may idle

    def send(self, message: ToEngine) -> None:
        """To the engine, if it lives; else nothing: `on_ready` is the time to send again."""
        if self._link is not None and self.ready:
            self._link.send(message)

    async def run(self) -> None:
        """Starts and replaces the engine until `close`, a fatal model, or the restart budget is spent."""
        while not self._closing.is_set():
            await self._live()
            if self._closing.is_set():
                return
            if self._fatal is not None:
                self._listener.on_fatal(self._fatal, budget_spent=False)
                return
            if not self._may_restart():
                self._listener.on_fatal(
                    f"the engine on {self.config.device} was lost {self._max_restarts + 1} times in "
                    f"{RESTART_WINDOW:g} s, the last time: {self._cause.value if self._cause else 'unknown'}",
                    budget_spent=True,
                )
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._backoff())

    def close(self) -> None:
        """Ends the engine; `run` returns when it is gone."""
        self._closing.set()
        if self._link is not None:
            self._link.kill()

    async def _live(self) -> None:
        began = time.monotonic()
        self._lost.clear()
        self._cause = self._reason = None
        self._executing.clear()
        self._silent = self._stalled = 0.0
        try:
            self._link = link = await self._connect(self._on_message, self._on_lost)
        except OSError as error:  # short of memory, processes or files: often for a moment only
            log.error("cannot start an engine on %s: %s", self.config.device, error)
            self._cause = Cause.CRASHED
            self._listener.on_lost(self, (), self._cause)
            return
        if self._closing.is_set():
            link.kill()
        link.send(Configure(self.config, self._models))
        self._began = began
        ticks = 0
        while not self._lost.is_set():
            try:
                await asyncio.wait_for(self._lost.wait(), TICK)
            except TimeoutError:
                ticks += 1
                self._look(link, ticks)
        try:
            await asyncio.wait_for(link.gone(), LEAVING)
        except TimeoutError:
            link.kill()
            await link.gone()
        self._link = None
        if self._closing.is_set():
            return
        if self._cause is None:
            self._cause = Cause.KILLED if link.killed else Cause.CRASHED
        fields = {"device": self.config.device, "cause": self._cause.value, "reason": self._reason}
        log.error("engine lost", extra={"fields": fields})
        suspects = tuple(sample for each in self._executing for sample in each.step.samples)
        self._listener.on_lost(self, suspects, self._cause)

    def _look(self, link: Link, ticks: int) -> None:
        """Counts ticks, not wall time: a stall of this process or of the machine is not the engine's."""
        self._silent += TICK
        if ticks % PING_EVERY == 0:
            link.send(Ping())
        if self._silent > (SILENCE if self.ready else LOADING_SILENCE):
            self._kill(link, Cause.SILENT)
            return
        if not self.ready or not self.outstanding:
            self._stalled = 0.0
            return
        self._stalled += TICK
        for each in self._executing:
            each.age += TICK
        # a step's age is never less than the silence since its start, so that counts only while there is none
        if any(each.hangs for each in self._executing) or (not self._executing and self._stalled > PROGRESS):
            self._kill(link, Cause.HANG)

    def _kill(self, link: Link, cause: Cause) -> None:
        log.error(
            "engine on %s gives no sign of life: replacing it",
            self.config.device,
            extra={"fields": {"cause": cause.value}},
        )
        self._cause = cause
        link.kill()
        self._on_lost()

    def _on_message(self, message: FromEngine) -> None:
        if self._lost.is_set():
            return
        self._silent = 0.0
        if isinstance(message, Pong):
            return
        self._stalled = 0.0
        if isinstance(message, Ready):
            self.load_seconds = time.monotonic() - self._began
            self.ready = True
            fields = {"device": self.config.device, "seconds": round(self.load_seconds, 3)}
            log.info("engine ready", extra={"fields": fields})
            self._listener.on_ready(self, message)
        elif isinstance(message, Fatal):
            self._fatal = message.reason
            self._cause = Cause.FATAL
        elif isinstance(message, Crashed):
            self._cause, self._reason = Cause.CRASHED, message.reason
        else:
            if isinstance(message, StepStarted):
                self._executing.append(Executing(message))
            elif isinstance(message, StepEnded):
                over = next(each for each in self._executing if each.step.samples == message.samples)
                self._executing.remove(over)
            self._listener.on_message(self, message)

    def _on_lost(self) -> None:
        self._lost.set()
        self.ready = False

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - RESTART_WINDOW:
            self._restarts.popleft()
        self._restarts.append(now)
        return len(self._restarts) <= self._max_restarts

    def _backoff(self) -> float:
        recent = sum(moment > time.monotonic() - BACKOFF_WINDOW for moment in self._restarts)
        return BACKOFF[min(recent, len(BACKOFF)) - 1]

"""A few small processes that decode clients' pictures, so that a hostile one costs its own request and no more.

They are spawned, hold no torch, start with the first picture, and are thrown away after a number of pictures and
after every one that went wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Final

import msgspec

from service.api.picture_input import UNKNOWN, UNREADABLE, Order, Picture, Refusal, format_of
from service.api.picture_input_worker import LENGTH
from service.environment import without_secrets
from service.errors import Draining, Unavailable

__all__ = ["PicturePool"]

MEMORY: Final = 640 * 2**20  # bytes that one picture may take; the largest that is allowed takes half of it
SECONDS: Final = 20.0  # that one picture may take
UNSEEN: Final = 255  # asyncio's exit code of a process whose end something else saw, as its own `kill` may
PICTURES: Final = 200  # that a worker reads before it is replaced

_answers = msgspec.msgpack.Decoder(Picture | Refusal)


class PicturePool:
    """At most `workers` processes. One event loop uses it."""

    def __init__(self, workers: int | None = None, *, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self._places = asyncio.Semaphore(workers or max(1, min(4, os.cpu_count() or 1)))
        self._memory = memory
        self._seconds = seconds
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that live now."""
        return [worker.pid for worker in self._all]

    async def read(self, order: Order) -> Picture | Refusal:
        """The picture that an order asks for, or why there is none. Raises `Unavailable`, `Draining`."""
        if format_of(order.data) is None:
            return UNKNOWN
        async with self._places:
            answer = await self._ask(self._idle.pop(), order) if self._idle else None
            # One that was idle may have died since, by no fault of this picture.
            return answer or await self._ask_anew(order)

    async def _ask_anew(self, order: Order) -> Picture | Refusal:
        """Of a new worker, and of another one when somebody kills that: no picture does, short of memory or not."""
        for _ in range(2):
            worker = await self._start()
            answer = await self._ask(worker, order)
            if answer is not None:
                return answer
            if not worker.killed:
                return UNREADABLE
        raise Unavailable("the processes that read pictures are killed", retry_after=1)

    async def _ask(self, worker: _Worker, order: Order) -> Picture | Refusal | None:
        """A worker's answer; None when it dies instead."""
        try:
            async with asyncio.timeout(self._seconds):
                answer = await worker.read(order)
        except (TimeoutError, msgspec.MsgspecError):
            await self._end(worker)
            return UNREADABLE
        except (OSError, EOFError):
            await self._end(worker)
            return None
        except BaseException:  # nobody waits any more: what it reads now would be the next one's answer
            await self._end(worker)
            raise
        if worker.pictures < PICTURES:
            self._idle.append(worker)
        else:
            await self._end(worker)
        return answer

    async def _start(self) -> _Worker:
        if self._closed:
            raise Draining("the service is stopping")
        try:
            worker = await _Worker.start(self._memory)
        except OSError as error:  # no descriptors, no processes, no memory
            raise Unavailable("no process for a picture can be started", retry_after=1) from error
        self._all.add(worker)
        return worker

    async def _end(self, worker: _Worker) -> None:
        self._all.discard(worker)
        await worker.end()

    async def close(self) -> None:
        """Ends all workers; leaves no process behind. Pictures that are being read are refused with `Draining`."""
        self._closed = True
        self._idle.clear()
        for worker in list(self._all):
            await self._end(worker)


class _Worker:
    """One process; see `picture_input_worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pictures = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def killed(self) -> bool:
        """Whether somebody ended it by SIGKILL, or so that nobody knows; known when it has ended."""
        return self._process.returncode in (-signal.SIGKILL, UNSEEN)

    @classmethod
    async def start(cls, memory: int) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.api.picture_input_worker", str(memory)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # what decoders say of a hostile file is no log entry
            env={**without_secrets(os.environ), "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        )
        return cls(process)

    async def read(self, order: Order) -> Picture | Refusal:
        """Raises EOFError or OSError when the process is gone."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        body = msgspec.msgpack.encode(order)
        if stdin.is_closing():  # uvloop's would raise a RuntimeError
            raise BrokenPipeError
        stdin.write(LENGTH.pack(len(body)))
        stdin.write(body)
        await stdin.drain()
        (length,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
        answer: Picture | Refusal = _answers.decode(await stdout.readexactly(length))
        self.pictures += 1
        return answer

    async def end(self) -> None:
        """Kills and reaps it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

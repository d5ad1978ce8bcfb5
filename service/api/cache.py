"""What recent and concurrent requests for the same thing share: a cache bounded in bytes, and single flight."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

import msgspec

from service.api.answers import Timings
from service.errors import DeadlineExceeded

__all__ = ["ByteCache", "CachedImage", "GeneratedImage", "SingleFlight", "Work"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_ENTRY_OVERHEAD = 512  # bytes of Python objects around a body


class CachedImage(msgspec.Struct, frozen=True):
    """An encoded image and the strong ETag that its bytes answer to."""

    etag: str
    body: bytes


class GeneratedImage(msgspec.Struct, frozen=True):
    """An image that was just made, and where the time went."""

    image: CachedImage
    timings: Timings


class ByteCache:
    """The most recently used images, as many as `capacity` bytes hold; 0 holds none."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._entries: OrderedDict[str, CachedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, etag: str) -> CachedImage | None:
        """The image of an ETag, which counts as a use of it."""
        if etag in self._entries:
            self._entries.move_to_end(etag)
        return self._entries.get(etag)

    def put(self, image: CachedImage) -> None:
        """Keeps an image, and drops the least recently used until all fit."""
        cost = len(image.body) + _ENTRY_OVERHEAD
        if cost > self.capacity or image.etag in self._entries:
            return
        self._entries[image.etag] = image
        self.size += cost
        while self.size > self.capacity:
            _, dropped = self._entries.popitem(last=False)
            self.size -= len(dropped.body) + _ENTRY_OVERHEAD


class Work(Protocol[T_co]):
    """Something under way whose result can be waited for once."""

    async def result(self) -> T_co:
        """Its result, or its error."""

    def cancel(self) -> None:
        """Frees what it holds; after the end that does nothing."""


class _Flight(Generic[T]):
    """One piece of work, detached from the requests that wait for it."""

    def __init__(self, work: Work[T]) -> None:
        self.waiters = 0
        self.task = asyncio.ensure_future(work.result())
        self._work = work
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[T]) -> None:
        # Here, and not in the work's own `finally`: that does not run when it is cancelled before its first step.
        self._work.cancel()
        if not task.cancelled():
            task.exception()  # looked at, so that one that nobody waits for any more is not reported as lost


class Starter(Protocol[T_co]):
    """Starts the work, or refuses it at once by raising: then nobody else is affected."""

    def __call__(self) -> Work[T_co]: ...


class SingleFlight(Generic[T]):
    """Runs work of equal keys once: who comes while it is under way waits for the same result."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._flights

    async def run(self, key: str, start: Starter[T], deadline: float) -> T:
        """The result of the work under `key`, started here if it is not under way.

        Each waiter has its own `deadline` (`time.monotonic()`), after which it gets `DeadlineExceeded`; the
        work is cancelled when the last waiter has left. An error reaches every waiter and is not kept.
        """
        while True:
            flight, joined = self._flights.get(key), True
            if flight is None:
                flight, joined = self._take_off(key, start), False
            try:
                return await self._wait(key, flight, deadline)
            except DeadlineExceeded:
                # The work had its starter's deadline. Who joined later may have time left for another start.
                if not joined or time.monotonic() >= deadline:
                    raise

    def _take_off(self, key: str, start: Starter[T]) -> _Flight[T]:
        flight = self._flights[key] = _Flight(start())
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    async def _wait(self, key: str, flight: _Flight[T], deadline: float) -> T:
        flight.waiters += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.shield(flight.task)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed while the request waited or ran.") from None
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._forget(key, flight)  # at once, so that nobody joins what is being cancelled
                flight.task.cancel()

    def _forget(self, key: str, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

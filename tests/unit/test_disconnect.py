"""Work for a request ends with its client."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.api.disconnect import until_disconnect


class Connection:
    """A request whose client can leave."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.listening = 0
        self.request = Request({"type": "http", "headers": [], "method": "POST", "path": "/"}, self.receive)

    async def receive(self) -> dict[str, Any]:
        self.listening += 1
        try:
            await self.left.wait()
        finally:
            self.listening -= 1
        return {"type": "http.disconnect"}


def run(work: Coroutine[Any, Any, Any], *, leave_after: float | None = None) -> Any:
    """The outcome of work for a client that may leave; nothing must listen to it afterwards."""

    async def main() -> Any:
        connection = Connection()
        if leave_after is not None:
            asyncio.get_running_loop().call_later(leave_after, connection.left.set)
        try:
            return await until_disconnect(connection.request, work)
        finally:
            await asyncio.sleep(0)
            assert connection.listening == 0

    return asyncio.run(main())


async def value() -> int:
    await asyncio.sleep(0.01)
    return 7


async def failure() -> None:
    raise LookupError("own")


def test_the_result_or_the_error_of_the_work_is_passed_on() -> None:
    assert run(value()) == 7
    with pytest.raises(LookupError, match="own"):
        run(failure())


def test_work_is_cancelled_and_finished_before_the_client_is_said_to_be_gone() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    with pytest.raises(ClientDisconnect):
        run(work(), leave_after=0.01)
    assert ended == [True]


def test_when_the_server_cancels_the_request_the_work_ends_too() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def main() -> None:
        task = asyncio.ensure_future(until_disconnect(Connection().request, work()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended == [True]

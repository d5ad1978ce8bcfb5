"""A client that goes away frees what it held."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.api.picture_input import Order, Picture
from tests.api.conftest import MakeStand, Stand
from tests.hostile_pictures import colourful, encoded

pytestmark = pytest.mark.anyio

Message = dict[str, Any]


class Caller:
    """One request straight to the application, whose connection the test can close."""

    def __init__(self, stand: Stand, method: str, path: str, body: bytes = b"", *, chunked: bool = False) -> None:
        headers = [(b"host", b"test"), (b"content-type", b"application/json")]
        if chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        elif body:
            headers.append((b"content-length", str(len(body)).encode()))
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("192.0.2.1", 5),
            "server": ("test", 80),
        }
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self._body: list[bytes] = [body]
        app: Callable[..., Awaitable[None]] = stand.app
        self.task = asyncio.ensure_future(app(self.scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


async def test_generate_is_cancelled(stand: Stand) -> None:
    """The submission is cancelled within milliseconds, nothing is answered, and it counts as cancelled."""
    stand.engine.gate.clear()
    caller = Caller(stand, "POST", "/v1/generate", b"{}")
    await stand.engine.submitted(1)
    assert not stand.engine.submissions[0].cancelled
    caller.gone.set()
    async with asyncio.timeout(1):
        await caller.task
    assert stand.engine.submissions[0].cancelled
    assert caller.sent == []
    assert stand.counted("requests_total", route="generate", outcome="cancelled") == 1


async def test_a_shared_image_goes_on_for_the_others(stand: Stand) -> None:
    """The one who started it may leave; when the last has left, the run is cancelled."""
    stand.engine.gate.clear()
    callers = [Caller(stand, "GET", "/v1/images/avatars/any/1.png") for _ in range(3)]
    await stand.engine.submitted(1)
    await asyncio.sleep(0.05)
    for caller in callers[:2]:
        caller.gone.set()
        async with asyncio.timeout(1):
            await caller.task
        assert not stand.engine.submissions[0].cancelled
    callers[2].gone.set()
    async with asyncio.timeout(1):
        await callers[2].task
        while not stand.engine.submissions[0].cancelled:
            await asyncio.sleep(0)
    assert len(stand.engine.submissions) == 1
    stand.engine.gate.set()
    async with stand.client() as client:
        assert (await client.get("/v1/images/avatars/any/1.png")).status_code == 200
    assert len(stand.engine.submissions) == 2


async def test_the_remaining_waiter_is_answered(stand: Stand) -> None:
    """Who stays gets the image that another one's request started."""
    stand.engine.gate.clear()
    first = Caller(stand, "GET", "/v1/images/avatars/any/1.png")
    await stand.engine.submitted(1)
    second = Caller(stand, "GET", "/v1/images/avatars/any/1.png")
    await asyncio.sleep(0.05)
    first.gone.set()
    await first.task
    stand.engine.gate.set()
    async with asyncio.timeout(5):
        await second.task
    assert second.sent[0]["status"] == 200
    assert len(stand.engine.submissions) == 1
    assert not stand.engine.submissions[0].cancelled


async def test_a_body_that_nobody_asked_for_is_refused_if_it_is_too_large(make_stand: MakeStand) -> None:
    """An image URL does not read it; what is wrong with it is told all the same."""
    stand = make_stand(max_body_bytes=1024)
    stand.engine.gate.clear()
    caller = Caller(stand, "GET", "/v1/images/avatars/any/1.png", b"x" * 1025, chunked=True)
    async with asyncio.timeout(5):
        await caller.task
    assert caller.sent[0]["status"] == 413
    assert stand.engine.submissions[0].cancelled
    assert stand.counted("request_failures_total", reason="body-too-large") == 1


@pytest.fixture
def pictures_wait(stand: Stand) -> asyncio.Event:
    """Pictures are not read; the event is set when somebody who waited for one no longer does."""
    left = asyncio.Event()

    async def read(order: Order) -> Picture:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    stand.app.state.context.pictures.read = read
    return left


def colorize(**fields: float) -> bytes:
    return json.dumps({"image": b64encode(encoded(colourful(), "PNG")).decode(), **fields}).encode()


async def test_who_leaves_while_a_picture_waits_to_be_read_gives_up_its_place(
    stand: Stand, pictures_wait: asyncio.Event
) -> None:
    caller = Caller(stand, "POST", "/v1/edits/colorize", colorize())
    await asyncio.sleep(0.05)
    assert not caller.task.done()
    caller.gone.set()
    async with asyncio.timeout(5):
        await caller.task
    assert pictures_wait.is_set()
    assert caller.sent == []


async def test_a_picture_that_waits_past_the_deadline_is_504(stand: Stand, pictures_wait: asyncio.Event) -> None:
    caller = Caller(stand, "POST", "/v1/edits/colorize", colorize(timeout=0.05))
    async with asyncio.timeout(5):
        await caller.task
    assert caller.sent[0]["status"] == 504
    assert pictures_wait.is_set()
    assert stand.engine.submissions == []

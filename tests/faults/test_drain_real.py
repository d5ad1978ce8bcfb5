"""SIGTERM on the real service: what was accepted is answered, nothing stays behind."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import httpx
import psutil
import pytest

from service.exits import ExitCode
from tests.conftest import Server, StartServer
from tests.load import Body, client_of, images_of, metric, post, post_all, random_bodies
from tests.tiny import tiny_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """asyncio, as the server's own loop."""
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny class-conditional model folder."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", "plain", sample_size=16)


async def in_flight(server: Server, bodies: list[Body], accepted: int) -> asyncio.Task[list[httpx.Response]]:
    """Sends all bodies and returns when the service has accepted that many of them."""
    answers = asyncio.create_task(post_all(server, bodies))
    while True:
        waiting = await metric(server, "onestep_num_requests_waiting")
        running = await metric(server, "onestep_num_requests_running")
        if waiting + running >= accepted:
            return answers
        assert not answers.done(), "the load ended before all of it was in flight"


def listens(server: Server) -> bool:
    """Whether a new connection is accepted."""
    port = int(server.url.rsplit(":", 1)[1])
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


async def test_sigterm_with_100_requests_in_flight_answers_all_of_them(start_server: StartServer, model: Path) -> None:
    """/readyz is 503 at once, the listener closes after drain_delay, all 100 are answered, no process is left."""
    server = start_server("--model", str(model), "--drain-delay", "2")
    bodies = [dict(body, num_inference_steps=20) for body in random_bodies(100, max_size=4, max_steps=8, seed=6)]
    for body in bodies:
        body.pop("timesteps", None)
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    async with client_of(server) as prober:
        await prober.get("/readyz")
        answers = await in_flight(server, bodies, 100)
        server.process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        while (ready := await prober.get("/readyz")).status_code == 200:
            assert time.monotonic() - sent < 1
        assert ready.status_code == 503
        late = await post(prober, {"seed": 1})
        assert late.status_code == 200, "requests are still accepted during drain_delay"
    while listens(server):
        await asyncio.sleep(0.05)
    assert time.monotonic() - sent >= 2

    assert [len(images_of(answer)) for answer in await answers] == [body["batch_size"] for body in bodies]
    assert await asyncio.to_thread(server.process.wait, 60) == ExitCode.OK
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE], gone


@pytest.mark.slow
async def test_a_dribbling_client_cannot_hold_the_end_up(start_server: StartServer, model: Path) -> None:
    """A body that comes byte by byte is cut off at drain_timeout; the exit code says so."""
    server = start_server("--model", str(model), "--drain-timeout", "3", "--body-timeout", "100")
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as dribbler:
        head = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        dribbler.sendall(head)
        await asyncio.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        while server.process.poll() is None and time.monotonic() - sent < 30:
            try:
                dribbler.sendall(b" ")
            except OSError:
                break
            await asyncio.sleep(0.1)
        code = await asyncio.to_thread(server.process.wait, 30)
    assert code == ExitCode.DRAIN_TIMEOUT
    assert time.monotonic() - sent < 20

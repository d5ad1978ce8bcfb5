"""Engines that die, hang, or are killed by a request: no client notices, but for the one that did it."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from service.engine.process import FAULT_SEED
from service.exits import ExitCode
from tests.conftest import Server, StartServer
from tests.load import client_of, engine_process, images_of, metric, post, post_all, post_each, random_bodies
from tests.tiny import tiny_model

pytestmark = pytest.mark.anyio

POISON = 7_777_777_777_777_777


@pytest.fixture
def anyio_backend() -> str:
    """asyncio, as the server's own loop."""
    return "asyncio"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny class-conditional model folder."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", "plain", sample_size=16)


async def wait_for_replacement(server: Server, restarts: float, within: float = 60) -> None:
    """Returns when the engine was replaced that many times and the service is ready."""
    end = time.monotonic() + within
    async with client_of(server) as client:
        while time.monotonic() < end:
            if (
                await metric(server, "onestep_engine_restarts_total") >= restarts
                and (await client.get("/readyz")).status_code == 200
            ):
                return
            await asyncio.sleep(0.1)
    pytest.fail(f"no replacement within {within} s:\n{server.log.read_text()}")


@pytest.mark.slow
async def test_three_kills_during_300_requests_are_not_noticed(start_server: StartServer, model: Path) -> None:
    """SIGKILL three times: 300 correct answers, the same bytes as alone."""
    server = start_server("--model", str(model), "--max-queue-time", "250")
    bodies = random_bodies(300, max_size=3, max_steps=4, seed=1)
    answers = asyncio.create_task(post_all(server, bodies))
    for kill in range(1, 4):
        done = await metric(server, "onestep_image_steps_total")
        while await metric(server, "onestep_image_steps_total") < done + 50 and not answers.done():
            await asyncio.sleep(0.02)
        assert not answers.done(), "the load ended before the engine was killed"
        engine_process(server).send_signal(signal.SIGKILL)
        await wait_for_replacement(server, kill)
    crowded = [images_of(answer) for answer in await answers]

    alone = [images_of(answer) for answer in await post_each(server, bodies)]

    assert await metric(server, "onestep_engine_restarts_total", reason="killed") == 3
    assert crowded == alone


@pytest.mark.slow
async def test_a_stopped_engine_is_replaced_and_its_request_answered(start_server: StartServer, model: Path) -> None:
    """SIGSTOP: the engine gives no sign of life, is replaced, and the waiting request gets the right picture."""
    server = start_server("--model", str(model))
    body = {"seed": 5, "num_inference_steps": 40, "batch_size": 16}
    (before,) = await post_all(server, [body])
    stopped = engine_process(server)
    stopped.send_signal(signal.SIGSTOP)

    (after,) = await post_all(server, [body])

    assert images_of(after) == images_of(before)
    assert not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE
    assert await metric(server, "onestep_engine_restarts_total") == 1


@pytest.mark.slow
async def test_only_the_request_that_kills_the_engine_fails(start_server: StartServer, model: Path) -> None:
    """A poisonous request is rerun alone and fails as engine-lost; its neighbours in the batch are answered."""
    server = start_server("--model", str(model), env={FAULT_SEED: str(POISON)})
    bodies = random_bodies(20, max_size=4, max_steps=8, seed=2)
    bodies.insert(10, {"seed": POISON, "num_inference_steps": 2})

    answers = await post_all(server, bodies)

    poisoned = answers.pop(10)
    assert poisoned.status_code == 503
    assert poisoned.json()["type"].endswith("/engine-lost")
    bodies.pop(10)
    alone = await post_each(server, bodies)
    assert [images_of(a) for a in answers] == [images_of(a) for a in alone]
    assert await metric(server, "onestep_engine_restarts_total") == 2
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]  # the engine's own among them
    lost = [(line["cause"], line["reason"]) for line in lines if line["message"] == "engine lost"]
    assert lost == [("crashed", "RuntimeError: the fault seed was asked for")] * 2


@pytest.mark.slow
def test_a_spent_restart_budget_ends_the_service_with_its_own_code(start_server: StartServer, model: Path) -> None:
    """With one restart allowed, the second death ends the service, and the waiting client hears why."""
    server = start_server("--model", str(model), "--engine-restarts", "1", env={FAULT_SEED: str(POISON)})
    answer = httpx.post(f"{server.url}/v1/generate", json={"seed": POISON}, timeout=60, trust_env=False)
    assert answer.status_code == 503
    assert answer.json()["type"].endswith("/engine-lost")
    assert server.process.wait(30) == ExitCode.ENGINE


@pytest.mark.slow
def test_a_killed_http_process_leaves_no_engine_behind(start_server: StartServer, model: Path) -> None:
    """The engine goes with the HTTP process, even when it is stopped at that moment."""
    for stopped in (False, True):
        server = start_server("--model", str(model))
        engine = engine_process(server)
        if stopped:
            engine.send_signal(signal.SIGSTOP)
        server.process.kill()
        server.process.wait(5)
        psutil.wait_procs([engine], timeout=5)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


async def test_a_disconnected_client_frees_its_places_before_the_next_step(
    start_server: StartServer, model: Path
) -> None:
    """A bulk request whose client leaves makes at most a few more steps; a later one does not queue behind it."""
    server = start_server("--model", str(model))
    async with client_of(server) as client:
        bulk = asyncio.create_task(post(client, {"seed": 1, "batch_size": 64, "num_inference_steps": 40}))
        while not await metric(server, "onestep_image_steps_total"):
            await asyncio.sleep(0.01)
        bulk.cancel()
    while await metric(server, "onestep_num_requests_running"):
        await asyncio.sleep(0.01)
    made = await metric(server, "onestep_image_steps_total")
    await asyncio.sleep(1)
    assert await metric(server, "onestep_image_steps_total") <= made + 64
    assert made < 64 * 40 / 2
    assert await metric(server, "onestep_num_images_waiting") == 0


async def test_an_expired_request_never_enters_a_batch(start_server: StartServer, model: Path) -> None:
    """While the engine is stopped a request's deadline passes: 504, and not one image-step was made for it."""
    server = start_server("--model", str(model))
    await post_all(server, [{"seed": 1}])
    made = await metric(server, "onestep_image_steps_total")
    engine = engine_process(server)
    engine.send_signal(signal.SIGSTOP)
    (answer,) = await post_all(server, [{"seed": 2, "batch_size": 4, "timeout": 1.0}])
    engine.send_signal(signal.SIGCONT)
    assert answer.status_code == 504
    (later,) = await post_all(server, [{"seed": 3}])
    assert later.status_code == 200
    assert await metric(server, "onestep_image_steps_total") == made + 1
    assert await metric(server, "onestep_request_failures_total", reason="deadline-exceeded") == 1

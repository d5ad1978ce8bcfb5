"""Several models and several engines in one service."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from tests.conftest import StartServer
from tests.load import client_of, images_of, metric, post, post_all, post_each, random_bodies
from tests.tiny import tiny_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """asyncio, as the server's own loop."""
    return "asyncio"


@pytest.mark.slow
async def test_two_models_on_two_engines_survive_the_death_of_one(start_server: StartServer, tmp_path: Path) -> None:
    """Both models answer from both engines; one engine is killed under load and every answer is right."""
    first = tiny_model(tmp_path / "one", "plain")
    second = tiny_model(tmp_path / "two", "lsun_like", num_train_timesteps=151)
    server = start_server("--model", f"small={first},other={second}", "--device", "cpu,cpu", "--max-queue-time", "200")
    async with client_of(server) as client:
        models = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["small", "other"]
    while await metric(server, "onestep_engine_ready") < 2:  # one is enough for /readyz
        await asyncio.sleep(0.1)

    bodies = random_bodies(60, max_size=4, max_steps=8, seed=8)
    for i, body in enumerate(bodies):
        if i % 2:
            body["model"] = "other"
            body.pop("class_labels", None)
    load = asyncio.create_task(post_all(server, bodies))
    while await metric(server, "onestep_image_steps_total") < 20:
        assert not load.done()
    engines = psutil.Process(server.process.pid).children()
    assert len(engines) == 2
    engines[0].send_signal(signal.SIGKILL)
    crowded = [images_of(answer) for answer in await load]

    alone = [images_of(answer) for answer in await post_each(server, bodies)]
    assert crowded == alone
    assert await metric(server, "onestep_engine_restarts_total", reason="killed") == 1


async def test_a_class_is_refused_by_the_unconditional_model_only(start_server: StartServer, tmp_path: Path) -> None:
    """`class_labels` is 422 where the model takes none."""
    server = start_server("--model", str(tiny_model(tmp_path / "plain", "lsun_like")))
    async with client_of(server) as client:
        refused = await post(client, {"class_labels": 1})
        made = await post(client, {"seed": 1})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["loc"] == ["body", "class_labels"]
    assert made.json()["images"][0]["class_label"] is None

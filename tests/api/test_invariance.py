"""A seed gives the same bytes whatever the load: crowded, alone on a fresh server, offline, and by URL."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import Server, StartServer
from tests.load import Body, client_of, images_of, metric, post_all, post_each, random_bodies
from tests.tiny import tiny_model

pytestmark = pytest.mark.anyio


async def urls(server: Server, model: str, bodies: list[Body], answers: list[httpx.Response]) -> list[list[bytes]]:
    """The same images by their URLs, image by image, all at once."""

    async def get(client: httpx.AsyncClient, body: Body, image: dict[str, object]) -> bytes:
        steps = body.get("timesteps")
        query = f"timesteps={','.join(map(str, steps))}" if steps else f"steps={body['num_inference_steps']}"
        path = f"/v1/images/{model}/{image['class_label']}/{image['seed']}.png?{query}"
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.content

    async with client_of(server) as client:
        return [
            list(await asyncio.gather(*(get(client, body, image) for image in answer.json()["images"])))
            for body, answer in zip(bodies, answers, strict=True)
        ]


def offline(environment: dict[str, str], model: str, body: Body, image: dict[str, object], folder: Path) -> bytes:
    """One image by `onestep generate`."""
    steps = body.get("timesteps")
    chosen = ["--timesteps", ",".join(map(str, steps))] if steps else ["--steps", str(body["num_inference_steps"])]
    command = [sys.executable, "-m", "service", "generate", "--model", model, "--out", str(folder), *chosen]
    command += ["--seed", str(image["seed"]), "--class", str(image["class_label"])]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path.read_bytes()


async def check(
    start_server: StartServer, environment: dict[str, str], bodies: list[Body], model: str, name: str, tmp_path: Path
) -> None:
    """Fires all requests at once, then compares with a fresh server, with URLs and with the command line."""
    server = start_server("--model", model, "--max-queue-time", "1200", "--request-timeout", "1200")
    answers = await post_all(server, bodies)
    crowded = [images_of(answer) for answer in answers]
    rows = await metric(server, "onestep_batch_size_sum") / await metric(server, "onestep_batch_size_count")
    assert rows > 2, "no batch was shared, so nothing was shown"
    server.stop()

    fresh = start_server("--model", model)
    alone = [images_of(answer) for answer in await post_each(fresh, bodies)]
    assert crowded == alone
    assert crowded == await urls(fresh, name, bodies, answers)

    for i in random.Random(0).sample(range(len(bodies)), 2):
        image = answers[i].json()["images"][-1]
        made = offline(environment, model, bodies[i], image, tmp_path / f"offline{i}")
        assert made == crowded[i][-1]


async def test_40_requests_on_a_tiny_model(
    start_server: StartServer, server_environment: dict[str, str], tmp_path: Path
) -> None:
    """Batches of 1 to 16 images, 1 to 8 steps and custom timesteps: the same bytes everywhere."""
    folder = tiny_model(tmp_path / "tiny", "plain", sample_size=16)
    bodies = random_bodies(40, max_size=16, max_steps=8, seed=3)
    await check(start_server, server_environment, bodies, str(folder), "tiny", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(2400)
async def test_500_requests_on_the_bundled_model(
    start_server: StartServer, server_environment: dict[str, str], tmp_path: Path
) -> None:
    """500 mixed requests on the model people get: the same bytes everywhere."""
    rng = random.Random(5)
    bodies = random_bodies(500, max_size=16, max_steps=8, seed=4)
    for body in bodies:  # most are small, as in life; all sizes and step counts still occur
        if rng.random() < 0.9:
            body["batch_size"] = rng.randint(1, 3)
            body.pop("class_labels", None)
            if "num_inference_steps" in body:
                body["num_inference_steps"] = rng.randint(1, 2)
    await check(start_server, server_environment, bodies, "avatars-32", "avatars-32", tmp_path)

"""Drives a real server in tests: many requests at once, its metrics, its engine process."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Sequence
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Server

Body = dict[str, Any]


def engine_process(server: Server) -> psutil.Process:
    """The engine that lives now."""
    engines = [
        child
        for child in psutil.Process(server.process.pid).children()
        if "service.engine.process" in " ".join(child.cmdline())
    ]
    assert len(engines) == 1, engines
    return engines[0]


async def metric(server: Server, name: str, **labels: str) -> float:
    """Sum of a metric's samples with these labels; 0 when there is none yet."""
    async with client_of(server) as client:
        text = (await client.get("/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def random_bodies(count: int, *, max_size: int, max_steps: int, train_timesteps: int = 40, seed: int = 0) -> list[Body]:
    """Requests of mixed sizes and steps, a quarter with explicit timesteps; distinct seeds."""
    rng = random.Random(seed)
    bodies = []
    for i in range(count):
        size = rng.randint(1, max_size)
        body: Body = {"batch_size": size, "seed": 1000 * i + rng.randint(0, 900)}
        if rng.random() < 0.25:
            steps = rng.randint(1, max_steps)
            body["timesteps"] = sorted(rng.sample(range(train_timesteps), steps), reverse=True)
        else:
            body["num_inference_steps"] = rng.randint(1, max_steps)
        if rng.random() < 0.5:
            body["class_labels"] = [rng.randint(0, 9) for _ in range(size)]
        bodies.append(body)
    return bodies


async def post(client: httpx.AsyncClient, body: Body) -> httpx.Response:
    """One `POST /v1/generate`."""
    return await client.post("/v1/generate", json=body)


def images_of(answer: httpx.Response) -> list[bytes]:
    """The PNG files of a JSON answer. Fails on any other answer."""
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(image["b64_json"]) for image in answer.json()["images"]]


def client_of(server: Server, timeout: float = 1200) -> httpx.AsyncClient:
    """A client with as many connections as it likes, and more patience than any server's `request_timeout`."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    return httpx.AsyncClient(base_url=server.url, timeout=timeout, limits=limits, trust_env=False)


async def post_all(server: Server, bodies: Sequence[Body]) -> list[httpx.Response]:
    """All requests at once."""
    async with client_of(server) as client:
        return list(await asyncio.gather(*(post(client, body) for body in bodies)))


async def post_each(server: Server, bodies: Sequence[Body]) -> list[httpx.Response]:
    """One request after the other."""
    async with client_of(server) as client:
        return [await post(client, body) for body in bodies]

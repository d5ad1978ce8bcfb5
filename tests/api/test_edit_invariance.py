"""Edits and generations share forwards, and nobody's bytes depend on it."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Server, StartServer
from tests.hostile_pictures import colourful, encoded
from tests.load import client_of, images_of, metric
from tests.tiny import tiny_model

pytestmark = pytest.mark.anyio

SIDE = 16
Call = tuple[str, dict[str, Any]]  # path, JSON body
KINDS = (
    "generate",
    "generate",
    "edits/inpaint",
    "edits/colorize",
    "edits/super-resolution",
    "edits/stroke",
    "edits/denoise",
    "interpolate",
)


def base64_of(image: Image.Image) -> str:
    return base64.b64encode(encoded(image, "PNG")).decode()


def random_calls(count: int, seed: int = 0) -> list[Call]:
    """Mixed requests of 1 to 4 images and 1 to 8 steps."""
    rng = random.Random(seed)
    calls: list[Call] = []
    for i in range(count):
        kind = rng.choice(KINDS)
        body: dict[str, Any] = {"num_inference_steps": rng.randint(1, 8)}
        if kind == "interpolate":
            body |= {"seed_from": rng.randrange(2**53), "seed_to": i, "frames": rng.randint(2, 4)}
        else:
            body |= {"seed": rng.randrange(2**52), "batch_size": rng.randint(1, 4)}
        if kind.startswith("edits/"):
            picture = colourful(rng.randint(SIDE, 64), rng.randint(SIDE, 64)).rotate(rng.randint(0, 359))
            body["image"] = base64_of(picture)
        if kind == "edits/inpaint":
            mask = np.random.default_rng(i).integers(0, 2, (SIDE, SIDE), np.uint8) * 255
            body["mask"] = base64_of(Image.fromarray(mask))
        elif kind == "edits/super-resolution":
            body["factor"] = rng.choice([2, 4, 8])
        elif kind == "edits/stroke":
            body["strength"] = rng.uniform(0.3, 1)
        elif kind == "edits/denoise":
            body["sigma"] = rng.uniform(0.01, 50)
            del body["num_inference_steps"]
        calls.append((f"/v1/{kind}", body))
    return calls


async def at_once(server: Server, calls: Sequence[Call]) -> tuple[list[httpx.Response], float]:
    """The answers to all calls together, and the mean number of rows in a forward meanwhile."""
    before = await rows_and_forwards(server)
    async with client_of(server) as client:
        answers = await asyncio.gather(*(client.post(path, json=body) for path, body in calls))
    after = await rows_and_forwards(server)
    return list(answers), (after[0] - before[0]) / (after[1] - before[1])


async def rows_and_forwards(server: Server) -> tuple[float, float]:
    return await metric(server, "onestep_batch_size_sum"), await metric(server, "onestep_batch_size_count")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [50, pytest.param(300, marks=pytest.mark.slow)])
async def test_edits_and_generations_together_are_as_alone(
    start_server: StartServer, tmp_path: Path, count: int
) -> None:
    """Every image has the bytes that it has when nothing else runs."""
    folder = tiny_model(tmp_path / "tiny", "plain", sample_size=SIDE)
    limits = ("--max-queue-time", "1200", "--request-timeout", "1200", "--max-batch-size", "16")
    server = start_server("--model", str(folder), "--log-level", "warning", *limits)
    calls = random_calls(count)
    assert len({path for path, _ in calls}) == len(set(KINDS))

    answers, rows = await at_once(server, calls)
    together = [images_of(answer) for answer in answers]
    assert rows > 3, "no batch was shared, so nothing was shown"

    async with client_of(server) as client:
        alone = [images_of(await client.post(path, json=body)) for path, body in calls]
    assert [calls[i][0] for i in range(len(calls)) if together[i] != alone[i]] == []
    assert len({image for images in alone for image in images}) > count

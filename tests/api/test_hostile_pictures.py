"""Hostile pictures cost their own request a 422 and nobody else anything."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from service.api.picture_input import Order, Picture, Refusal
from service.api.picture_input_pool import PICTURES, PicturePool
from tests.conftest import Server, StartServer
from tests.hostile_pictures import Case, colourful, corpus, encoded
from tests.tiny import tiny_model

GOOD = encoded(colourful(), "PNG")


def order(data: bytes) -> Order:
    return Order(data, "picture", "crop", 8, 3)


@pytest.fixture(scope="module")
def tiny_server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tiny_model(tmp_path_factory.mktemp("models") / "tiny", "plain")
    server = start_server("--model", str(folder), "--log-level", "warning")
    yield server
    server.stop()


@pytest.fixture
def client(tiny_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tiny_server.url, trust_env=False, timeout=60) as client:
        yield client


def colorize(client: httpx.Client, data: bytes) -> httpx.Response:
    request = json.dumps({"steps": 1, "seed": 1, "class_labels": 0})
    return client.post("/v1/edits/colorize", files={"image": ("a.png", data)}, data={"request": request})


def fault(one: Case, response: httpx.Response) -> str | None:
    """What is wrong with an answer, None when nothing is."""
    if response.status_code == 200:
        return None if one.picture else f"{one.name}: is a picture"
    body = response.json()
    found = [(response.status_code, error["loc"], error["code"] in one.codes) for error in body.get("errors", ())]
    return None if found == [(422, ["body", "image"], True)] else f"{one.name}: {response.status_code} {body}"


def test_every_file_is_refused_with_its_reason_or_read(client: httpx.Client) -> None:
    faults = [fault(one, colorize(client, one.data)) for one in corpus()]
    assert [one for one in faults if one] == []
    assert len(faults) > 150


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_http_process_does_not_grow(tiny_server: Server, client: httpx.Client) -> None:
    """A thousand hostile pictures leave less than 5 MiB behind, and workers of a few dozen megabytes."""
    files = [one.data for one in corpus()]
    for data in files:
        colorize(client, data)
    process = psutil.Process(tiny_server.process.pid)
    before = process.memory_info().rss
    for index in range(1000):
        assert colorize(client, files[index % len(files)]).status_code in (200, 422)
    assert process.memory_info().rss - before < 5 * 2**20
    workers = workers_of(tiny_server)
    assert workers
    assert all(worker.memory_info().rss < 100 * 2**20 for worker in workers)
    assert not any("torch" in line.path for worker in workers for line in worker.memory_maps())


def workers_of(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if any("picture_input_worker" in word for word in child.cmdline())]


def test_a_killed_worker_costs_nobody_anything(tiny_server: Server, client: httpx.Client) -> None:
    """Whether the server has noticed its death already or not, the next picture is read by another."""
    assert colorize(client, GOOD).status_code == 200
    for _ in range(8):
        killed = workers_of(tiny_server)
        assert killed
        for worker in killed:
            worker.kill()
        assert [colorize(client, GOOD).status_code for _ in range(2)] == [200, 200]
        assert not set(killed) & set(workers_of(tiny_server))


def test_a_server_leaves_no_worker_behind(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--model", str(tiny_model(tmp_path / "tiny", "plain")), "--log-level", "warning")
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        assert colorize(client, GOOD).status_code == 200
    children = psutil.Process(server.process.pid).children()
    assert len(children) == 2  # the engine and a worker
    assert server.stop() == 0
    assert not any(child.is_running() for child in children)


@pytest.mark.anyio
async def test_too_little_memory_is_a_refusal_and_a_new_worker() -> None:
    pool = PicturePool(1, memory=64 * 2**20)
    try:
        assert isinstance(await pool.read(order(GOOD)), Picture)
        (first,) = pool.pids
        big = encoded(Image.new("RGB", (5000, 5000)), "PNG")
        answer = await pool.read(order(big))
        assert isinstance(answer, Refusal)
        assert answer.code == "image_unreadable"
        assert isinstance(await pool.read(order(GOOD)), Picture)
        assert [first] != pool.pids
    finally:
        await pool.close()


@pytest.mark.anyio
async def test_too_much_time_is_a_refusal() -> None:
    pool = PicturePool(1, seconds=0.0)
    try:
        answer = await pool.read(order(GOOD))
        assert isinstance(answer, Refusal)
        assert answer.code == "image_unreadable"
        assert pool.pids == []
    finally:
        await pool.close()


@pytest.mark.anyio
async def test_a_client_that_leaves_does_not_shift_the_answers() -> None:
    """After a cancelled order the next one gets its own picture."""
    pool = PicturePool(1)
    try:
        big = asyncio.ensure_future(pool.read(order(encoded(Image.new("RGB", (5000, 5000), (255, 0, 0)), "PNG"))))
        await asyncio.sleep(0.05)
        big.cancel()
        answer = await pool.read(order(encoded(Image.new("RGB", (9, 9), (0, 0, 255)), "PNG")))
        assert isinstance(answer, Picture)
        assert answer.pixels == bytes((0, 0, 255)) * 64
        with pytest.raises(asyncio.CancelledError):
            await big
    finally:
        await pool.close()


@pytest.mark.anyio
async def test_workers_start_with_the_first_picture_and_are_thrown_away() -> None:
    pool = PicturePool(2)
    try:
        assert pool.pids == []
        assert await pool.read(order(b"GIF89a")) == Refusal("image_format", "Should be a PNG, JPEG or WebP file.")
        assert pool.pids == []  # its first bytes were enough
        seen = set()
        for _ in range(PICTURES + 1):
            await pool.read(order(GOOD))
            seen.update(pool.pids)
        assert len(seen) == 2
    finally:
        await pool.close()
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).name().startswith("python") for pid in seen)


@pytest.mark.anyio
async def test_pictures_are_read_side_by_side_but_not_more_than_workers() -> None:
    pool = PicturePool(2)
    try:
        began = time.monotonic()
        answers = await asyncio.gather(*(pool.read(order(GOOD)) for _ in range(20)))
        assert all(isinstance(answer, Picture) for answer in answers)
        assert len(pool.pids) == 2
        assert time.monotonic() - began < 30
    finally:
        await pool.close()

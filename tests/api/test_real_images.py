"""The bundled model behind a real server: the same picture, whichever way it is asked for."""

from __future__ import annotations

import base64
import io
import socket
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Server


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def model(http: httpx.Client) -> dict[str, Any]:
    """The default model."""
    found: dict[str, Any] = http.get("/v1/models").json()["data"][0]
    return found


def post(http: httpx.Client, accept: str = "application/json", **fields: Any) -> httpx.Response:
    response = http.post("/v1/generate", json=fields, headers={"accept": accept})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("steps", [{}, {"num_inference_steps": 3}, {"timesteps": [22, 0]}])
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_same_bytes_every_way(
    http: httpx.Client, model: dict[str, Any], steps: dict[str, Any], output_format: str
) -> None:
    """Batch, ZIP, single and URL give an image's very bytes, also when all are asked for at once."""
    body = {"batch_size": 3, "seed": 1000, "class_labels": None, "output_format": output_format, **steps}
    query = {"steps": 3} if "num_inference_steps" in steps else {"timesteps": "22,0"} if steps else {}
    single = {key: body[key] for key in (*steps, "output_format")}
    with ThreadPoolExecutor(8) as threads:
        batch = threads.submit(post, http, **body)
        archive = threads.submit(post, http, "application/zip", **body)
        singles = [threads.submit(post, http, "image/*", seed=1000 + index, **single) for index in range(3)]
        paths = [f"/v1/images/{model['id']}/any/{1000 + index}.{output_format}" for index in range(3)]
        urls = [threads.submit(http.get, path, params=query) for path in paths]
    expected = [base64.b64decode(image["b64_json"]) for image in batch.result().json()["images"]]
    assert len(set(expected)) == 3
    with zipfile.ZipFile(io.BytesIO(archive.result().content)) as opened:
        assert [opened.read(name) for name in opened.namelist()[:3]] == expected
    assert [single.result().content for single in singles] == expected
    assert [url.result().content for url in urls] == expected


def test_float_pixels_are_those_of_the_png(http: httpx.Client) -> None:
    """uint8 = round(255 float), half to even."""
    array = np.load(io.BytesIO(post(http, "application/x-npy", batch_size=2, seed=5).content))
    images = post(http, batch_size=2, seed=5).json()["images"]
    for values, image in zip(array, images, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))))
        assert np.array_equal(pixels, np.rint(values * np.float32(255)).astype(np.uint8))


def test_latents_of_the_seed_change_nothing(http: httpx.Client, model: dict[str, Any]) -> None:
    """The first draw of a seed, sent as latents, gives the seed's picture; another seed's gives another."""
    torch = pytest.importorskip("torch")
    side, channels = model["image_size"], model["channels"]

    def latents(seed: int) -> str:
        draw = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(seed))
        file = io.BytesIO()
        np.save(file, draw.numpy())
        return base64.b64encode(file.getvalue()).decode()

    plain = post(http, "application/x-npy", seed=9).content
    assert post(http, "application/x-npy", seed=9, latents=latents(9)).content == plain
    assert post(http, "application/x-npy", seed=9, latents=latents(10)).content != plain


def test_timings_add_up(http: httpx.Client) -> None:
    """Queue, inference and encoding are parts of the total, and the total of what the client waited."""
    began = time.perf_counter()
    timings = post(http, batch_size=2, steps=4).json()["timings"]
    waited = (time.perf_counter() - began) * 1000
    assert timings["inference_ms"] > 1
    assert timings["queue_ms"] + timings["inference_ms"] + timings["encode_ms"] <= timings["total_ms"] <= waited


def answers(server: Server, *requests: str) -> bytes:
    """What the server sends for requests down one connection, byte for byte."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        for request in requests[:-1]:
            connection.sendall(f"{request} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        connection.sendall(f"{requests[-1]} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


def test_head_on_the_wire(server: Server, model: dict[str, Any]) -> None:
    """HEAD has neither body nor a length of 0, and the connection goes on to the next request."""
    path = f"/v1/images/{model['id']}/any/{time.time_ns() % 2**50}.png"
    received = answers(server, f"HEAD {path}", f"HEAD {path}", f"GET {path}")
    first, second, third, body = received.split(b"\r\n\r\n", 3)
    for head in (first, second):
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-length: 0" not in head.lower()
        assert b"transfer-encoding" not in head.lower()
    assert third.startswith(b"HTTP/1.1 200")
    assert body.startswith(b"\x89PNG")


def test_not_modified_on_the_wire(server: Server, http: httpx.Client, model: dict[str, Any]) -> None:
    """304 has no body and no length, and needs no second look at the model."""
    path = f"/v1/images/{model['id']}/any/3.webp"
    etag = http.get(path).headers["etag"]
    received = answers(server, f"GET {path} HTTP/1.1\r\nIf-None-Match: {etag}\r\nX-Rest:")
    head, body = received.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 304")
    assert etag.encode() in head
    assert b"content-length" not in head.lower()
    assert body == b""


def test_a_client_that_leaves_frees_its_place(server: Server, http: httpx.Client, model: dict[str, Any]) -> None:
    """Work of a closed connection stops: the images it still owed are never made."""
    steps = model["num_train_timesteps"]
    with httpx.Client(base_url=server.url, trust_env=False, timeout=0.5) as client:
        try:
            answer = client.post("/v1/generate", json={"batch_size": 16, "num_inference_steps": steps})
        except httpx.ReadTimeout:
            pass  # and the connection is closed
        else:
            pytest.fail(f"answered too soon: {answer.status_code} {answer.text[:300]}")
    time.sleep(0.5)

    def image_steps() -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("onestep_image_steps_total"))

    before = image_steps()
    time.sleep(1)
    assert image_steps() == before
    assert 'onestep_requests_total{outcome="cancelled",route="generate"}' in http.get("/metrics").text

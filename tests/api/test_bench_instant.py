"""The server of `benchmarks.http_alone`: the real one, before an engine that costs nothing."""

from __future__ import annotations

import base64
import io

import httpx
from PIL import Image

from benchmarks.http_alone import InstantServer, stages_per_request, workloads
from benchmarks.instant.server import STAGES
from service.bench.load import run_closed


def test_it_serves_pictures_and_tells_what_every_stage_takes() -> None:
    """Every stage is seen in the requests that have it: a function that was renamed would be missing."""
    with InstantServer("--stages") as server:
        body = {"batch_size": 2, "class_labels": [1, 2], "seed": 7}
        answer = httpx.post(f"{server.url}/v1/generate", json=body, trust_env=False).raise_for_status().json()
        some = {workload.name: workload for workload in workloads(server.url, answer["model"])}
        spent = stages_per_request(server, some["batch of 4"], 2, 0.5)
        cached = stages_per_request(server, some["image URL, cached"], 2, 0.3)
        for name in ("/livez", "image URL, 304"):
            assert run_closed(server.url, some[name], 2, 0.2, 0.0).failures == {}
        assert server.cpu_seconds() > 0
    for image in answer["images"]:
        with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as picture:
            assert (picture.format, picture.size) == ("PNG", (32, 32))
    assert set(spent) == set(STAGES)
    assert all(each["cpu_ms"] > 0 < each["wall_ms"] for each in spent.values())
    assert set(cached) >= {"plan", "build response"}
    assert "encode PNG" not in cached

"""An event stream tells the whole way of a request, as the contract says."""

from __future__ import annotations

import base64
import statistics
import time
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.sse import Event, metric, open_stream, pixels, read_stream
from tests.api.wire import Wire
from tests.conftest import Server, StartServer
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def tiny(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A real server with a small model of ten classes."""
    model = tiny_model(tmp_path_factory.mktemp("model") / "tiny", sample_size=16)
    return start_server("--model", str(model), "--threads", "1")


def generate(server: Server, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/generate", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def named(events: list[Event], name: str) -> list[Any]:
    return [event.data for event in events if event.name == name]


def picture(entry: dict[str, Any]) -> np.ndarray:
    return pixels(base64.b64decode(entry["b64_json"]))


def test_order_and_content(tiny: Server) -> None:
    """queued, then each image's previews in order and the image itself, then done with the timings."""
    events = read_stream(tiny.url, batch_size=3, seed=40, steps=4, class_labels=7)
    assert events[0].name == "queued"
    assert events[0].data == {"position": 0}
    assert events[-1].name == "done"
    assert set(events[-1].data) == {"timings"}
    assert {"queue_ms", "inference_ms", "encode_ms", "total_ms"} == set(events[-1].data["timings"])
    steps = named(events, "step")
    for index in range(3):
        own = [step for step in steps if step["index"] == index]
        assert [step["step"] for step in own] == [1, 2, 3]
        kinds = [e.name for e in events if e.name in ("step", "image") and e.data["index"] == index]
        assert kinds == ["step", "step", "step", "image"]
    for step in steps:
        assert set(step) == {"index", "step", "num_inference_steps", "b64_json"}
        assert step["num_inference_steps"] == 4
        assert base64.b64decode(step["b64_json"]).startswith(b"\x89PNG")
    assert len(events) == 1 + 9 + 3 + 1


def test_images_are_those_of_the_json_answer(tiny: Server) -> None:
    """Every image event is, byte for byte, an entry of the JSON answer to the same request."""
    body = {"batch_size": 4, "seed": [9, 1, 5, 1], "timesteps": [22, 0], "output_format": "webp", "quality": 70}
    events = read_stream(tiny.url, **body)
    images = sorted(named(events, "image"), key=lambda image: image["index"])
    assert images == generate(tiny, **body)["images"]


def test_a_preview_is_the_denoised_estimate_of_its_step(tiny: Server) -> None:
    """After its first step a picture looks exactly as the one-step picture of the same seed and class."""
    events = read_stream(tiny.url, seed=77, class_labels=3, steps=3)
    first = next(step for step in named(events, "step") if step["step"] == 1)
    (alone,) = generate(tiny, seed=77, class_labels=3, steps=1)["images"]
    assert np.array_equal(picture(first), picture(alone))
    (final,) = named(events, "image")
    assert not np.array_equal(picture(first), picture(final))


@pytest.mark.parametrize(
    ("steps", "callback_steps", "shown"), [(1, 1, []), (2, 1, [1]), (6, 2, [2, 4]), (5, 4, [4]), (3, 40, [])]
)
def test_callback_steps(tiny: Server, steps: int, callback_steps: int, shown: list[int]) -> None:
    """A preview comes every so many steps; the last step comes as the image only."""
    events = read_stream(tiny.url, steps=steps, callback_steps=callback_steps, seed=1)
    assert shown == [step["step"] for step in named(events, "step")]
    assert len(named(events, "image")) == 1


def test_headers(tiny: Server) -> None:
    """Nothing on the way may keep the stream, and the head says which images will come."""
    with open_stream(tiny.url, batch_size=2, seed=8, class_labels=[1, 2]) as (response, events):
        headers = response.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert headers["vary"] == "Accept"
        assert headers["x-seed"] == "8,9"
        assert headers["x-class-label"] == "1,2"
        assert headers["x-model-revision"].startswith("sha256:")
        assert headers["x-request-id"].startswith("req_")
        assert "content-length" not in headers
        assert [*events][-1].name == "done"


def test_callback_steps_mean_nothing_elsewhere(tiny: Server) -> None:
    """The JSON answer is the same whatever `callback_steps` says."""
    one, other = (generate(tiny, seed=4, steps=3, callback_steps=n)["images"] for n in (1, 2))
    assert one == other


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b'{"seed": -1}', 422, "invalid-request"),
        (b'{"callback_steps": 0}', 422, "invalid-request"),
        (b"{", 400, "bad-request"),
        (b'{"timeout": 0.0000001}', 422, "invalid-request"),
    ],
)
def test_a_refusal_is_an_ordinary_answer(tiny: Server, body: bytes, status: int, slug: str) -> None:
    """What is refused before the stream begins has a status of its own and a problem document."""
    with Wire(int(tiny.url.rsplit(":", 1)[1])) as wire:
        answer = wire.post(body, b"Accept: text/event-stream").answer()
    assert (answer.status, answer.problem.removeprefix("urn:onestep:problems/")) == (status, slug)


def test_first_event_within_50_ms(tiny: Server) -> None:
    """On an idle server the first event follows the request within 50 ms, long before the images."""
    waits, totals = [], []
    for seed in range(9):
        with Wire(int(tiny.url.rsplit(":", 1)[1])) as wire:
            wire.socket.settimeout(30)
            sent = time.monotonic()
            wire.post({"seed": seed, "steps": 20, "batch_size": 2}, b"Accept: text/event-stream")
            got = b""
            while b"event: queued" not in got:
                got += wire.socket.recv(65536)
            waits.append(time.monotonic() - sent)
            while b"event: done" not in got:
                got += wire.socket.recv(65536)
            totals.append(time.monotonic() - sent)
    assert statistics.median(waits) < 0.05
    assert statistics.median(totals) > 2 * statistics.median(waits)


def test_a_stream_is_a_request_like_any_other_in_the_metrics(tiny: Server) -> None:
    """It is counted once, when it ends, with its images and its latency."""
    names = {
        "requests": ("requests_total", {"route": "generate", "outcome": "ok"}),
        "latency": ("e2e_request_latency_seconds_count", {"route": "generate"}),
        "queue": ("request_queue_time_seconds_count", {}),
        "inference": ("inference_time_seconds_count", {}),
        "encode": ("encode_time_seconds_count", {}),
        "images": ("images_total", {"model": "tiny"}),
    }
    before = {key: metric(tiny, name, **labels) for key, (name, labels) in names.items()}
    read_stream(tiny.url, batch_size=3, seed=0)
    after = {key: metric(tiny, name, **labels) for key, (name, labels) in names.items()}
    grown = {key: after[key] - before[key] for key in names}
    assert grown == {"requests": 1, "latency": 1, "queue": 1, "inference": 1, "encode": 1, "images": 3}

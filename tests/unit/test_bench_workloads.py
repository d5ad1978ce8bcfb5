"""Workloads are the same every time, and ask for what their names say."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from itertools import islice

import pytest
from PIL import Image

from service.bench.command import WORKLOADS
from service.bench.workloads import NAMES, make_workload


@pytest.mark.parametrize("name", NAMES)
def test_equal_workloads_send_equal_requests(name: str) -> None:
    first, again, other = (list(islice(make_workload(name, seed=seed).calls(), 50)) for seed in (1, 1, 2))
    assert first == again != other


def test_command_knows_every_workload() -> None:
    assert tuple(WORKLOADS) == NAMES


def test_mixed_is_an_even_mix() -> None:
    calls = list(islice(make_workload("mixed").calls(), 4000))
    bodies = [json.loads(call.body) for call in calls]
    for field in ("batch_size", "num_inference_steps"):
        counts = Counter(body[field] for body in bodies)
        assert {value: round(count / 1000) for value, count in counts.items()} == {1: 2, 2: 1, 4: 1}
    for call, body in zip(calls, bodies, strict=True):
        assert call.images == body["batch_size"] == len(body["class_labels"])
        assert call.image_steps == body["batch_size"] * body["num_inference_steps"]


def test_singles_are_one_image_of_one_step_and_their_seeds_differ() -> None:
    bodies = [json.loads(call.body) for call in islice(make_workload("singles").calls(), 100)]
    assert {(body["batch_size"], body["num_inference_steps"]) for body in bodies} == {(1, 1)}
    assert len({body["seed"] for body in bodies}) == 100


def test_model_and_classes_are_named_only_when_there_are_any() -> None:
    plain = next(make_workload("singles", classes=None).calls())
    named = next(make_workload("singles", classes=3, model="avatars").calls())
    assert {"class_labels", "model"} & set(json.loads(plain.body)) == set()
    assert json.loads(named.body)["model"] == "avatars"
    assert json.loads(named.body)["class_labels"][0] in range(3)


def test_edits_send_pictures_and_are_every_other_request() -> None:
    calls = list(islice(make_workload("edits").calls(), 400))
    kinds = Counter(call.kind for call in calls)
    assert set(kinds) == {
        "generate",
        "inpaint",
        "colorize",
        "super-resolution",
        "stroke",
        "denoise",
        "interpolate",
    }
    assert 150 < kinds["generate"] < 250
    for call in calls:
        body = json.loads(call.body)
        for field in {"image", "mask"} & set(body):
            with Image.open(io.BytesIO(base64.b64decode(body[field]))) as picture:
                assert (picture.format, picture.size) == ("PNG", (32, 32))

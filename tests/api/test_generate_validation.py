"""POST /v1/generate refuses what is not valid, names the field, repeats no input, and never answers 500."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.engine.request import MAX_SEED
from tests.api.conftest import MakeStand, Stand
from tests.api.counting_engine import model_info

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    return found


RAW_REFUSALS = [
    (b'{"seed": NaN}', 400),
    (b'{"timeout": Infinity}', 400),
    (b'{"timeout": -Infinity}', 400),
    (b'{"timeout": 1e400}', 422),
    (b'{"seed": 1e400}', 422),
    (b'{"seed": ' + b"9" * 5000 + b"}", 422),
    (b'{"timeout": ' + b"9" * 400 + b"}", 422),
    (b'{"model": "\\ud800"}', 422),
    (b'{"\\ud800": 1}', 422),
    (b'{"class_labels": ["\\udfff"]}', 422),
    (b'{"model": "\xed\xa0\x80"}', 400),
    (b'{"seed": 1, "seed": 2}', 422),
    (b'{"seed": true}', 422),
    (b'{"batch_size": true}', 422),
    (b'{"batch_size": "5"}', 422),
    (b'{"batch_size": 1.0}', 422),
    (b'{"seed": 1.0}', 422),
    (b'{"timesteps": [22.0, 0]}', 422),
    (b'{"num_inference_steps": false}', 422),
    (b'{"timeout": "5"}', 422),
    (b'{"timeout": true}', 422),
    (b"", 400),
    (b"   ", 400),
    (b"null", 422),
    (b"[]", 422),
    (b'"text"', 422),
    (b"{", 400),
    (b"{}x", 400),
    (b"\xef\xbb\xbf{}", 400),
    ('{"seed": 1}'.encode("utf-16"), 400),
    (b"[" * 100_000, 422),
    (b'{"seed": [' + b"[" * 200 + b"]" * 200 + b"]}", 422),
]


@pytest.mark.parametrize(("body", "status"), RAW_REFUSALS, ids=lambda value: repr(value)[:40])
async def test_raw_traps(client: httpx.AsyncClient, stand: Stand, body: bytes, status: int) -> None:
    """What breaks or slips through this stack by default is refused with a problem document."""
    problem(await client.post("/v1/generate", content=body, headers=JSON), status)
    assert stand.engine.submissions == []


# field values, and the (loc, code) of every error
REFUSALS: list[tuple[dict[str, Any], list[tuple[list[str | int], str]]]] = [
    ({"batch_size": 0}, [(["body", "batch_size"], "greater_than_equal")]),
    ({"batch_size": 65}, [(["body", "batch_size"], "batch_size_too_large")]),
    ({"batch_size": 10**30}, [(["body", "batch_size"], "batch_size_too_large")]),
    ({"batch_size": None}, [(["body", "batch_size"], "int_type")]),
    ({"model": "nobody"}, [(["body", "model"], "unknown_model")]),
    ({"model": None}, [(["body", "model"], "null_forbidden")]),
    ({"model": 5}, [(["body", "model"], "string_type")]),
    ({"class_labels": 3}, [(["body", "class_labels"], "class_out_of_range")]),
    ({"class_labels": "3"}, [(["body", "class_labels"], "class_out_of_range")]),
    ({"class_labels": -1}, [(["body", "class_labels"], "greater_than_equal")]),
    ({"class_labels": "unheard of"}, [(["body", "class_labels"], "unknown_class")]),
    ({"class_labels": "any"}, [(["body", "class_labels"], "reserved_class")]),
    ({"class_labels": ""}, [(["body", "class_labels"], "string_too_short")]),
    ({"class_labels": {}}, [(["body", "class_labels"], "class_labels_type")]),
    ({"class_labels": True}, [(["body", "class_labels"], "class_labels_type")]),
    ({"class_labels": [0, 1]}, [(["body", "class_labels"], "wrong_length")]),
    ({"class_labels": []}, [(["body", "class_labels"], "wrong_length")]),
    ({"class_labels": [0] * 5000}, [(["body", "class_labels"], "class_labels_type")]),
    (
        {"batch_size": 3, "class_labels": [9, "cat", "wolf"]},
        [
            (["body", "class_labels", 0], "class_out_of_range"),
            (["body", "class_labels", 2], "unknown_class"),
        ],
    ),
    ({"batch_size": 2, "class_labels": [0, 1.5]}, [(["body", "class_labels", 1], "class_label_type")]),
    ({"num_inference_steps": 0}, [(["body", "num_inference_steps"], "greater_than_equal")]),
    ({"num_inference_steps": 41}, [(["body", "num_inference_steps"], "steps_out_of_range")]),
    ({"num_inference_steps": None}, [(["body", "num_inference_steps"], "int_type")]),
    ({"steps": 41}, [(["body", "steps"], "steps_out_of_range")]),
    ({"steps": 0}, [(["body", "steps"], "greater_than_equal")]),
    ({"steps": 1, "num_inference_steps": 1}, [(["body", "steps"], "conflict")]),
    ({"timesteps": [22, 0], "num_inference_steps": 2}, [(["body", "timesteps"], "conflict")]),
    ({"timesteps": [22, 0], "steps": 2}, [(["body", "timesteps"], "conflict")]),
    ({"timesteps": []}, [(["body", "timesteps"], "too_short")]),
    ({"timesteps": [0, 22]}, [(["body", "timesteps"], "timesteps_not_descending")]),
    ({"timesteps": [22, 22]}, [(["body", "timesteps"], "timesteps_not_descending")]),
    ({"timesteps": [40, 0]}, [(["body", "timesteps"], "timesteps_out_of_range")]),
    ({"timesteps": [22, -1]}, [(["body", "timesteps", 1], "greater_than_equal")]),
    ({"timesteps": [1] * 5000}, [(["body", "timesteps"], "too_long")]),
    ({"timesteps": 22}, [(["body", "timesteps"], "list_type")]),
    ({"seed": -1}, [(["body", "seed"], "greater_than_equal")]),
    ({"seed": MAX_SEED + 1}, [(["body", "seed"], "less_than_equal")]),
    ({"seed": MAX_SEED, "batch_size": 2}, [(["body", "seed"], "seed_out_of_range")]),
    ({"seed": [1]} | {"batch_size": 2}, [(["body", "seed"], "wrong_length")]),
    ({"seed": [1, "x"], "batch_size": 2}, [(["body", "seed", 1], "seed_type")]),
    ({"seed": "1"}, [(["body", "seed"], "seed_type")]),
    ({"output_format": "gif"}, [(["body", "output_format"], "literal_error")]),
    ({"output_format": None}, [(["body", "output_format"], "literal_error")]),
    ({"output_format": "PNG"}, [(["body", "output_format"], "literal_error")]),
    ({"quality": 80}, [(["body", "quality"], "quality_of_lossless")]),
    ({"quality": 80, "output_format": "png"}, [(["body", "quality"], "quality_of_lossless")]),
    ({"quality": 0, "output_format": "jpeg"}, [(["body", "quality"], "greater_than_equal")]),
    ({"quality": 101, "output_format": "webp"}, [(["body", "quality"], "less_than_equal")]),
    ({"callback_steps": 0}, [(["body", "callback_steps"], "greater_than_equal")]),
    ({"timeout": 0}, [(["body", "timeout"], "greater_than")]),
    ({"timeout": -1.5}, [(["body", "timeout"], "greater_than")]),
    ({"timeout": 300.5}, [(["body", "timeout"], "timeout_too_long")]),
    ({"timeout": 10**20}, [(["body", "timeout"], "timeout_too_long")]),
    ({"latents": 5}, [(["body", "latents"], "string_type")]),
    ({"latents": "no base64!"}, [(["body", "latents"], "base64")]),
    ({"prompt": "a cat"}, [(["body", "prompt"], "extra_forbidden")]),
    ({"": 1}, [(["body"], "extra_forbidden")]),
    ({"<script>": 1}, [(["body"], "extra_forbidden")]),
    (
        {"prompt": 1, "batch_size": "x", "quality": 0},
        [
            (["body", "prompt"], "extra_forbidden"),
            (["body", "batch_size"], "int_type"),
            (["body", "quality"], "greater_than_equal"),
        ],
    ),
    (
        {"timesteps": [0, 1], "seed": [1, 2], "class_labels": 9, "timeout": 1000, "quality": 5},
        [
            (["body", "timesteps"], "timesteps_not_descending"),
            (["body", "seed"], "wrong_length"),
            (["body", "timeout"], "timeout_too_long"),
            (["body", "quality"], "quality_of_lossless"),
        ],
    ),
]


@pytest.mark.parametrize(("fields", "expected"), REFUSALS, ids=lambda value: repr(value)[:50])
async def test_refusals(
    client: httpx.AsyncClient, stand: Stand, fields: dict[str, Any], expected: list[tuple[list[str | int], str]]
) -> None:
    """Every error is named by its place and a stable word, and nothing reaches the engine."""
    found = problem(await client.post("/v1/generate", content=json.dumps(fields), headers=JSON), 422)
    assert [(error["loc"], error["code"]) for error in found["errors"]] == expected
    assert all(error["message"].endswith(".") for error in found["errors"])
    assert stand.engine.submissions == []


async def test_classes_of_an_unconditional_model(make_stand: MakeStand) -> None:
    """A class for a model without classes is refused; null is not."""
    stand = make_stand(model_info("plain", classes=None))
    async with stand.client() as client:
        for label in (0, "cat", [0]):
            found = problem(await client.post("/v1/generate", json={"class_labels": label}), 422)
            assert found["errors"][0]["code"] == "unconditional_model"
        for label in (None, [None]):
            response = await client.post("/v1/generate", json={"class_labels": label})
            assert response.status_code == 200
    assert {None} == {sample.class_label for sample in stand.engine.samples}


async def test_ambiguous_class_names(make_stand: MakeStand) -> None:
    """A name that several classes bear is refused with the candidates; each candidate is taken."""
    stand = make_stand(model_info("twins", classes=["crane", "Crane", "owl"]))
    async with stand.client() as client:
        found = problem(await client.post("/v1/generate", json={"class_labels": "CRANE"}), 422)
        assert found["errors"][0]["code"] == "ambiguous_class"
        for index, slug in enumerate(["crane-0", "crane-1"]):
            assert slug in found["errors"][0]["message"]
            answer = (await client.post("/v1/generate", json={"class_labels": slug})).json()
            assert answer["images"][0]["class_label"] == index


async def test_limits_are_settings(make_stand: MakeStand) -> None:
    """`max_client_batch_size` and `request_timeout` bound a request, and are taken exactly."""
    stand = make_stand(max_client_batch_size=3, request_timeout=2)
    async with stand.client() as client:
        assert (await client.post("/v1/generate", json={"batch_size": 3, "timeout": 2})).status_code == 200
        problem(await client.post("/v1/generate", json={"batch_size": 4}), 422)
        problem(await client.post("/v1/generate", json={"timeout": 2.01}), 422)


async def test_extremes_are_taken(client: httpx.AsyncClient, stand: Stand) -> None:
    """The ends of every range are inside it."""
    for fields in (
        {"seed": MAX_SEED},
        {"seed": MAX_SEED - 1, "batch_size": 2},
        {"seed": 0, "num_inference_steps": 40},
        {"timesteps": list(range(39, -1, -1))},
        {"timesteps": [39]},
        {"class_labels": "2"},
        {"class_labels": "  BIG dog "},
        {"seed": [None, MAX_SEED], "class_labels": [None, 0], "batch_size": 2},
        {"timeout": 300},
        {"quality": 100, "output_format": "webp"},
        {"class_labels": None, "timesteps": None, "seed": None, "latents": None},
        {"batch_size": 64},
        {"callback_steps": 10**9},
    ):
        response = await client.post("/v1/generate", json=fields)
        assert response.status_code == 200, response.text
    assert stand.engine.samples[1].seed == MAX_SEED - 1


async def test_the_form_is_settled_before_any_work(client: httpx.AsyncClient, stand: Stand) -> None:
    """406 comes before the engine hears of the request, and lists what there is."""
    for accept, fields in (("text/html", {}), ("image/png", {"output_format": "jpeg"})):
        response = await client.post("/v1/generate", json=fields, headers={"accept": accept})
        assert "application/json" in problem(response, 406)["detail"]
    assert stand.engine.submissions == []


async def test_a_sheet_that_the_format_cannot_hold(make_stand: MakeStand) -> None:
    """A contact sheet beyond what WebP can hold is refused; a PNG of it is not asked for here."""
    stand = make_stand(model_info("huge", size=8192))
    async with stand.client() as client:
        response = await client.post("/v1/generate", json={"batch_size": 2}, headers={"accept": "image/webp"})
        assert problem(response, 422)["errors"][0]["code"] == "sheet_too_large"
    assert stand.engine.submissions == []


async def test_query_parameters_are_refused(client: httpx.AsyncClient) -> None:
    """A parameter in the URL is a mistake that would otherwise go unseen."""
    found = problem(await client.post("/v1/generate?seed=5", json={}), 422)
    assert found["errors"][0]["loc"] == ["query", "seed"]


async def test_other_content_types(client: httpx.AsyncClient) -> None:
    """Only application/json is read."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""):
        response = await client.post("/v1/generate", content=b"{}", headers={"content-type": kind})
        problem(response, 415)


async def test_many_errors_are_cut_short(client: httpx.AsyncClient) -> None:
    """A body of thousands of unknown fields gets a short answer, quickly."""
    body = {f"field{index}": 0 for index in range(20_000)}
    response = await client.post("/v1/generate", json=body)
    assert len(problem(response, 422)["errors"]) <= 16
    assert len(response.content) < 4096


SECRET = "xq7kvz"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just(SECRET)
    | st.integers(-(10**40), 10**40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "model",
    "batch_size",
    "class_labels",
    "num_inference_steps",
    "steps",
    "timesteps",
    "seed",
    "latents",
    "output_format",
    "quality",
    "callback_steps",
    "timeout",
]
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.integers(0, 5),
        "class_labels": st.none() | st.integers(-1, 4) | st.lists(st.integers(0, 2), max_size=5),
        "num_inference_steps": st.integers(0, 42),
        "timesteps": st.none() | st.lists(st.integers(0, 40), max_size=4, unique=True),
        "seed": st.none() | st.integers(-1, MAX_SEED + 1) | st.lists(st.integers(0, MAX_SEED), max_size=5),
        "output_format": st.sampled_from(["png", "jpeg", "webp"]),
        "quality": st.integers(0, 101),
        "timeout": st.floats(0, 400),
    },
)
ACCEPTS = st.sampled_from(
    ["*/*", "application/json", "image/*", "image/png", "multipart/mixed", "application/zip", "application/x-npy"]
)


@given(
    body=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), VALUES, max_size=5) | PLAUSIBLE,
    accept=ACCEPTS | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_is_answered(stand: Stand, body: dict[str, Any], accept: str) -> None:
    """Whatever JSON comes: an answer with images or a refusal that repeats no value, never a 500."""

    async def send() -> httpx.Response:
        async with stand.client() as client:
            content = json.dumps(body).encode()
            return await client.post("/v1/generate", content=content, headers={**JSON, "accept": accept})

    response = asyncio.run(send())
    assert response.status_code in (200, 400, 406, 422)
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/problem+json"
        assert SECRET not in response.text
    elif response.headers["content-type"] == "application/json":
        answer = response.json()
        assert len(answer["images"]) == body.get("batch_size", 1)
        assert all(0 <= image["seed"] <= MAX_SEED for image in answer["images"])
        assert all(0 <= image["class_label"] <= 2 for image in answer["images"])


@given(st.binary(max_size=64) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered(stand: Stand, content: bytes) -> None:
    """Bytes that are no JSON, or not the JSON asked for, are refused as such."""

    async def send() -> httpx.Response:
        async with stand.client() as client:
            return await client.post("/v1/generate", content=content, headers=JSON)

    assert asyncio.run(send()).status_code in (200, 400, 422)

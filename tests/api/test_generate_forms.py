"""POST /v1/generate gives the same images in every form of answer."""

from __future__ import annotations

import base64
import email.policy
import io
import json
import time
import zipfile
from email.parser import BytesParser
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from service.api.answers import GenerateAnswer
from tests.api.conftest import MakeStand, Stand
from tests.api.counting_engine import model_info, pixels_of

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"batch_size": 3, "seed": 40, "class_labels": [0, "Big Dog", None], "timesteps": [22, 0]}


async def post(client: httpx.AsyncClient, accept: str | None = None, **fields: Any) -> httpx.Response:
    return await client.post("/v1/generate", json=fields, headers={"accept": accept} if accept else {})


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


async def test_json(client: httpx.AsyncClient, stand: Stand) -> None:
    """The JSON answer says what was made, and holds it."""
    before = int(time.time())
    response = await post(client, **BODY)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    answer = response.json()
    TypeAdapter(GenerateAnswer).validate_python(
        {**answer, "images": [{**each, "b64_json": each["b64_json"].encode()} for each in answer["images"]]},
        strict=True,
    )
    assert response.headers["x-request-id"] == answer["id"]
    assert before <= answer["created"] <= time.time()
    assert (answer["model"], answer["revision"]) == ("avatars", model_info().revision)
    assert (answer["num_inference_steps"], answer["timesteps"]) == (2, [22, 0])
    assert answer["sigmas"][0] == pytest.approx(80.0)
    assert answer["sigmas"][1] == pytest.approx(1.382, abs=5e-4)
    assert [image["index"] for image in answer["images"]] == [0, 1, 2]
    assert [image["seed"] for image in answer["images"]] == [40, 41, 42]
    assert [image["class_label"] for image in answer["images"]][:2] == [0, 1]
    assert [image["class_name"] for image in answer["images"]][:2] == ["cat", "Big Dog"]
    for image, sample in zip(answer["images"], stand.engine.samples, strict=True):
        assert (image["media_type"], image["width"], image["height"]) == ("image/png", 8, 8)
        assert pixels(base64.b64decode(image["b64_json"])).tobytes() == pixels_of(sample, model_info())
    timings = answer["timings"]
    assert set(timings) == {"queue_ms", "inference_ms", "encode_ms", "total_ms"}
    assert timings["total_ms"] >= timings["queue_ms"] + timings["inference_ms"] + timings["encode_ms"] > 0


async def test_evenly_spaced_steps_are_said_as_timesteps(client: httpx.AsyncClient, stand: Stand) -> None:
    """Two steps of 40 are [20, 0], and that list sent back makes the same image."""
    first = (await post(client, seed=1, num_inference_steps=2)).json()
    assert first["timesteps"] == [20, 0]
    again = (await post(client, seed=1, timesteps=first["timesteps"])).json()
    alias = (await post(client, seed=1, steps=2)).json()
    assert first["images"] == again["images"] == alias["images"]
    assert stand.engine.samples[0].sigmas == tuple(first["sigmas"])


async def test_every_form_holds_the_same_images(client: httpx.AsyncClient) -> None:
    """JSON, multipart, ZIP, the image alone and the image URL: byte for byte."""
    answer = (await post(client, **BODY)).json()
    expected = [base64.b64decode(image["b64_json"]) for image in answer["images"]]

    response = await post(client, "application/zip", **BODY)
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        assert expected == [archive.read(image["file"]) for image in manifest["images"]]
    assert response.content == (await post(client, "application/zip", **BODY)).content
    for key in ("model", "revision", "timesteps", "sigmas", "num_inference_steps"):
        assert manifest[key] == answer[key]
    labels = [image["class_label"] for image in answer["images"]]
    assert labels == [image["class_label"] for image in manifest["images"]]
    assert manifest["images"][1]["file"] == "0001-seed41-class1.png"

    response = await post(client, "multipart/mixed", **BODY)
    parts = parts_of(response)
    assert expected == [part.get_payload(decode=True) for part in parts]
    assert [part["X-Index"] for part in parts] == ["0", "1", "2"]
    assert [part["X-Seed"] for part in parts] == ["40", "41", "42"]
    assert [str(label) for label in labels] == [part["X-Class-Label"] for part in parts]
    assert {"image/png"} == {part["Content-Type"] for part in parts}

    for image, label, seed in zip(expected, labels, (40, 41, 42), strict=True):
        alone = await post(client, "image/png", seed=seed, class_labels=label, timesteps=[22, 0])
        assert alone.content == image
        url = await client.get(f"/v1/images/avatars/{label}/{seed}.png?timesteps=22,0")
        assert url.content == image


def parts_of(response: httpx.Response) -> list[Any]:
    head = b"Content-Type: " + response.headers["content-type"].encode() + b"\r\n\r\n"
    message = BytesParser(policy=email.policy.HTTP).parsebytes(head + response.content)
    assert message.get_content_type() == "multipart/mixed"
    assert not message.defects
    return list(message.iter_parts())


async def test_one_raw_image(client: httpx.AsyncClient) -> None:
    """A raw image says in headers what it is and where the time went."""
    response = await post(client, "image/*", seed=7, class_labels="owl")
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-seed"] == "7"
    assert response.headers["x-class-label"] == "2"
    assert response.headers["x-model-revision"] == model_info().revision
    names = [entry.split(";dur=")[0] for entry in response.headers["server-timing"].split(", ")]
    assert names == ["queue", "inference", "encode", "total"]


async def test_png_text_makes_the_picture_again(client: httpx.AsyncClient) -> None:
    """What a PNG of a batch says about itself, sent back, gives the very same file."""
    response = await post(client, "multipart/mixed", batch_size=3, seed=100, steps=3)
    third = parts_of(response)[2].get_payload(decode=True)
    text = Image.open(io.BytesIO(third)).text  # type: ignore[attr-defined]
    assert text == {
        "model": "avatars",
        "revision": model_info().revision,
        "seed": "102",
        "class_label": parts_of(response)[2]["X-Class-Label"],
        "timesteps": "26,13,0",
    }
    body = {
        "model": text["model"],
        "seed": int(text["seed"]),
        "class_labels": int(text["class_label"]),
        "timesteps": [int(timestep) for timestep in text["timesteps"].split(",")],
    }
    assert (await post(client, "image/png", **body)).content == third


async def test_contact_sheet(client: httpx.AsyncClient, stand: Stand) -> None:
    """Several raw images come as one sheet, row by row."""
    response = await post(client, "image/png", batch_size=5, seed=1)
    sheet = pixels(response.content)
    assert sheet.shape == (16, 24, 3)
    for index, sample in enumerate(stand.engine.samples):
        row, column = divmod(index, 3)
        found = sheet[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert found.tobytes() == pixels_of(sample, model_info())
    assert response.headers["x-seed"] == "1,2,3,4,5"


async def test_npy(client: httpx.AsyncClient, stand: Stand) -> None:
    """The array is float32 [N, H, W, C] in [0, 1], asked of the engine as such."""
    response = await post(client, "application/x-npy", batch_size=2, seed=1)
    array = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert array.dtype == np.float32
    assert array.shape == (2, 8, 8, 3)
    assert {"float32"} == {sample.pixels for sample in stand.engine.samples}
    assert array[0].tobytes() == pixels_of(stand.engine.samples[0], model_info())


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
async def test_lossy_formats(client: httpx.AsyncClient, output_format: str) -> None:
    """Format and quality go into every form."""
    fields = {"seed": 1, "output_format": output_format}
    image = (await post(client, **fields)).json()["images"][0]
    assert image["media_type"] == f"image/{output_format}"
    raw = await post(client, "image/*", **fields)
    assert raw.headers["content-type"] == f"image/{output_format}"
    assert raw.content == base64.b64decode(image["b64_json"])
    assert raw.content == (await post(client, f"image/{output_format}", seed=1)).content
    low = await post(client, "image/*", **fields, quality=5)
    assert len(low.content) < len(raw.content)
    url = await client.get(f"/v1/images/avatars/any/1.{output_format}?quality=5")
    assert url.content == low.content


async def test_unconditional_grey_model(make_stand: MakeStand) -> None:
    """Without classes there is no class label; one channel makes grey pictures."""
    stand = make_stand(model_info("grey", classes=None, channels=1))
    async with stand.client() as client:
        image = (await post(client, seed=3)).json()["images"][0]
        assert image["class_label"] is None
        assert image["class_name"] is None
        raw = await post(client, "image/png", seed=3)
        assert "x-class-label" not in raw.headers
        assert "class_label" not in Image.open(io.BytesIO(raw.content)).info
        assert Image.open(io.BytesIO(raw.content)).mode == "L"
        parts = parts_of(await post(client, "multipart/mixed", seed=3))
        assert "X-Class-Label" not in parts[0]
        array = np.load(io.BytesIO((await post(client, "application/x-npy")).content))
        assert array.shape == (1, 8, 8, 1)
        sheet = await post(client, "image/webp", batch_size=2)
        assert Image.open(io.BytesIO(sheet.content)).size == (16, 8)


async def test_large_batches_keep_their_order(make_stand: MakeStand) -> None:
    """A batch that is encoded by several threads at once comes out in order, as when encoded alone."""
    info = model_info("large", size=128)
    stand = make_stand(info)
    async with stand.client() as client:
        answer = (await post(client, batch_size=17, seed=0)).json()
        assert list(range(17)) == [image["index"] for image in answer["images"]]
        alone = (await post(client, seed=16)).json()["images"][0]
        assert answer["images"][16]["b64_json"] == alone["b64_json"]


async def test_the_second_model(make_stand: MakeStand) -> None:
    """The first model is the default; another is asked for by name."""
    stand = make_stand(model_info("first"), model_info("second"))
    async with stand.client() as client:
        assert (await post(client)).json()["model"] == "first"
        assert (await post(client, model="second")).json()["model"] == "second"
    assert [sample.model for sample in stand.engine.samples] == ["first", "second"]


async def test_deadline_and_client_go_with_the_samples(make_stand: MakeStand) -> None:
    """`timeout` becomes the samples' deadline; the client is who sent the key."""
    stand = make_stand(api_keys="alpha,beta")
    before = time.monotonic()
    async with stand.client() as client:
        for key in ("alpha", "beta", "alpha"):
            response = await client.post("/v1/generate", json={"timeout": 7.5}, headers={"x-api-key": key})
            assert response.status_code == 200
    for sample in stand.engine.samples:
        assert sample.deadline is not None
        assert before + 7.5 <= sample.deadline <= time.monotonic() + 7.5
    first, second, third = (sample.client for sample in stand.engine.samples)
    assert first == third != second


async def test_a_null_seed_is_drawn_and_said(client: httpx.AsyncClient, stand: Stand) -> None:
    """Two requests without a seed differ, and the seeds that were used come back, counting up."""
    first = (await post(client, batch_size=2)).json()
    second = (await post(client, seed=None)).json()
    seeds = [image["seed"] for image in first["images"]]
    assert seeds[1] == seeds[0] + 1
    assert second["images"][0]["seed"] not in seeds
    assert (await post(client, batch_size=2, seed=seeds)).json()["images"] == first["images"]


async def test_metrics(client: httpx.AsyncClient, stand: Stand) -> None:
    """A request is counted once, with its images and its times."""
    await post(client, batch_size=3)
    assert stand.counted("requests_total", route="generate", outcome="ok") == 1
    assert stand.counted("images_total", model="avatars") == 3
    for name in ("request_queue_time_seconds", "inference_time_seconds", "encode_time_seconds"):
        assert stand.counted(f"{name}_count") == 1
    assert stand.counted("e2e_request_latency_seconds_count", route="generate") == 1
    await post(client, batch_size=0)
    assert stand.counted("requests_total", route="generate", outcome="invalid") == 1


async def test_openapi_examples_are_answered(client: httpx.AsyncClient) -> None:
    """Every example of the document is a request that this service takes, and the schema knows every field."""
    document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/v1/generate"]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) >= 3
    for example in content["examples"].values():
        body = json.loads(json.dumps(example["value"]).replace("thumbs", "owl").replace("[0, 1, 2, null]", "2"))
        assert (await client.post("/v1/generate", json=body)).status_code == 200
    names = set(content["schema"]["properties"])
    assert {"model", "batch_size", "class_labels", "num_inference_steps", "steps", "timesteps"} <= names
    assert {"seed", "latents", "output_format", "quality", "callback_steps", "timeout"} <= names
    assert msgspec.json.encode(document).count(b"#/$defs/") == 0


async def test_previews_are_made_for_streams_only(client: httpx.AsyncClient, stand: Stand) -> None:
    await client.post("/v1/generate", json={"steps": 4, "callback_steps": 1})
    assert [sample.preview_every for sample in stand.engine.samples] == [0]

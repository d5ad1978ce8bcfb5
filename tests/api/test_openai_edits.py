"""`POST /v1/images/edits` serves the unmodified `openai` client: the transparent pixels are repainted."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.api.sse import pixels
from tests.conftest import Server, StartServer
from tests.tiny import tiny_model

SIDE = 16
PATH = "/v1/images/edits"


@pytest.fixture(scope="module")
def tiny(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A real server with a small model of ten classes."""
    model = tiny_model(tmp_path_factory.mktemp("model") / "tiny", sample_size=SIDE)
    return start_server("--model", str(model), "--threads", "1")


@pytest.fixture
def client(tiny: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


PICTURE = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[4:12, 2:9] = True
ALPHA = np.where(HOLE, 0, 255).astype(np.uint8)
CUTOUT = png(np.dstack([PICTURE, ALPHA]))
MASK = png(np.dstack([np.zeros_like(PICTURE), ALPHA]))


def own(server: Server, **body: Any) -> list[bytes]:
    """The images of this service's own inpainting, whose mask is white where it repaints."""
    answer = httpx.post(
        f"{server.url}/v1/edits/inpaint",
        files={
            "image": png(PICTURE),
            "mask": png(np.where(HOLE, 255, 0).astype(np.uint8)),
            "request": (None, json.dumps(body)),
        },
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return [image["b64_json"] for image in answer.json()["images"]]


def test_mask(client: openai.OpenAI, tiny: Server) -> None:
    """It is inpainting with the mask the other way round; what is not transparent comes back exactly."""
    answer = client.images.edit(
        image=png(PICTURE),
        mask=MASK,
        prompt="4",
        n=2,
        size=f"{SIDE}x{SIDE}",  # type: ignore[arg-type]
        response_format="b64_json",
        extra_body={"seed": 7, "timesteps": [30, 10, 0]},
    )
    assert answer.data is not None
    found = [image.b64_json for image in answer.data]
    assert found == own(tiny, class_labels=4, batch_size=2, seed=7, timesteps=[30, 10, 0])
    for text in found:
        edited = pixels(base64.b64decode(text or ""))
        assert np.array_equal(edited[~HOLE], PICTURE[~HOLE])
        assert not np.array_equal(edited[HOLE], PICTURE[HOLE])


def test_the_image_may_be_its_own_mask(client: openai.OpenAI, tiny: Server) -> None:
    """Without a mask the transparent pixels of the image are repainted; file names and lists of one are fine."""
    want = own(tiny, class_labels=4, seed=7, steps=3)
    for image in (CUTOUT, ("a.png", CUTOUT, "image/png"), [CUTOUT]):
        answer = client.images.edit(image=image, prompt="4", extra_body={"seed": 7, "num_inference_steps": 3})  # type: ignore[arg-type]
        assert answer.data is not None
        assert [each.b64_json for each in answer.data] == want


def test_text_becomes_what_the_field_is(client: openai.OpenAI, tiny: Server) -> None:
    """Numbers, lists and truth values come as text in a form, and mean what they mean in JSON."""
    answer = client.images.edit(
        image=CUTOUT,
        prompt="",
        n=2,
        output_format="webp",
        output_compression=50,
        user="someone",
        extra_body={"seed": [5, 9], "class_labels": [1, 2], "steps": 2, "timeout": 30.5, "fit": "exact"},
    )
    assert answer.data is not None
    assert [image.b64_json for image in answer.data] == own(
        tiny, batch_size=2, seed=[5, 9], class_labels=[1, 2], steps=2, output_format="webp", quality=50
    )


@pytest.mark.parametrize("name", ["timesteps", "timesteps[]"])
@pytest.mark.parametrize("timesteps", [[22], [22, 0]])
def test_a_list_is_a_field_that_stands_once_for_each_item(tiny: Server, name: str, timesteps: list[int]) -> None:
    """With the brackets of OpenAI's clients, or without, as the API reference says it."""
    answer = httpx.post(
        f"{tiny.url}{PATH}",
        files={"image": CUTOUT},
        data={"prompt": "3", "seed": ["5"], name: [str(timestep) for timestep in timesteps]},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert [answer.json()["data"][0]["b64_json"]] == own(tiny, class_labels=3, seed=5, timesteps=timesteps)


def test_stream(client: openai.OpenAI, tiny: Server) -> None:
    """The events are those of an edit, previews included."""
    stream = client.images.edit(
        image=CUTOUT, prompt="2", stream=True, partial_images=2, extra_body={"seed": 3, "num_inference_steps": 6}
    )
    events: list[Any] = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert [event.step for event in events[:2]] == [2, 4]
    assert [events[-1].b64_json] == own(tiny, class_labels=2, seed=3, num_inference_steps=6)
    for event in events:
        edited = pixels(base64.b64decode(event.b64_json))
        assert np.array_equal(edited[~HOLE], PICTURE[~HOLE])


@pytest.mark.anyio
async def test_async_client(tiny: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.images.edit(image=CUTOUT, prompt="4", extra_body={"seed": 7, "steps": 3})
    assert answer.data is not None
    assert [each.b64_json for each in answer.data] == own(tiny, class_labels=4, seed=7, steps=3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("arguments", "param", "code"),
    [
        ({"image": png(PICTURE)}, "mask", "mask_missing"),
        ({"image": [CUTOUT, CUTOUT]}, "image", "too_many_files"),
        ({"image": b"no picture"}, "image", None),
        ({"image": CUTOUT, "mask": b"no picture"}, "mask", None),
        ({"image": CUTOUT, "input_fidelity": "high"}, "input_fidelity", "unsupported_parameter"),
        ({"image": CUTOUT, "n": 0}, "n", "greater_than_equal"),
        ({"image": CUTOUT, "size": "1024x1024"}, "size", "size_not_available"),
        ({"image": CUTOUT, "prompt": "99"}, "prompt", "class_out_of_range"),
        ({"image": CUTOUT, "extra_body": {"seed": "five"}}, "seed", "seed_type"),
        ({"image": CUTOUT, "extra_body": {"latents": "AAAA"}}, "latents", "extra_forbidden"),
        ({"image": CUTOUT, "extra_body": {"num_inference_steps": 41}}, "num_inference_steps", "steps_out_of_range"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_refusals_name_the_field(
    client: openai.OpenAI, arguments: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.edit(**({"prompt": ""} | arguments))
    assert caught.value.param == param
    assert code in (None, caught.value.code)


def test_only_multipart(tiny: Server) -> None:
    """Another content type, or a form that is none, is refused in OpenAI's words."""
    wrong = httpx.post(f"{tiny.url}{PATH}", json={}, trust_env=False)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (415, "unsupported_media_type")
    broken = httpx.post(
        f"{tiny.url}{PATH}",
        content=b"--x\r\nnonsense",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        trust_env=False,
    )
    assert broken.status_code in (400, 422)
    assert set(broken.json()) == {"error"}
    text = httpx.post(f"{tiny.url}{PATH}", files={"image": (None, "text"), "prompt": (None, "")}, trust_env=False)
    assert (text.status_code, text.json()["error"]["code"]) == (422, "file_expected")
    twice = httpx.post(
        f"{tiny.url}{PATH}", files=[("image", CUTOUT), ("n", (None, "1")), ("n", (None, "2"))], trust_env=False
    )
    assert (twice.json()["error"]["param"], twice.json()["error"]["code"]) == ("n", "duplicate_key")

"""`POST /v1/images/generations` and `GET /v1/models` serve the unmodified `openai` client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.api.openai_answers import preview_steps
from tests.api.sse import pixels
from tests.conftest import Server, StartServer
from tests.tiny import tiny_model

LABELS = {str(index): name for index, name in enumerate(["cat", "dog", "Great Owl", *"abcdefg"])}
PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def tiny(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A real server with a small model of ten named classes, 16 pixels wide."""
    model = tiny_model(tmp_path_factory.mktemp("model") / "tiny", sample_size=16, labels=LABELS)
    return start_server("--model", str(model), "--threads", "1")


@pytest.fixture
def client(tiny: Server) -> Iterator[openai.OpenAI]:
    """The client as anyone would make it."""
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def own(server: Server, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/generate", json=body, trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_generate(client: openai.OpenAI, tiny: Server) -> None:
    """The images are those of /v1/generate; OpenAI's fields are there, and seeds and classes beside them."""
    answer = client.images.generate(
        model="tiny",
        prompt="great OWL",
        n=3,
        size="16x16",
        response_format="b64_json",
        quality="auto",
        background="auto",
        moderation="low",
        user="someone",
        extra_body={"seed": 5, "timesteps": [22, 0]},
    )
    expected = own(tiny, class_labels=2, batch_size=3, seed=5, timesteps=[22, 0])
    assert answer.data is not None
    assert [image.b64_json for image in answer.data] == [image["b64_json"] for image in expected["images"]]
    assert (answer.size, answer.output_format, answer.background) == ("16x16", "png", "opaque")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0
    extra = [image.model_extra for image in answer.data]
    assert extra == [{"seed": seed, "class_label": 2, "class_name": "Great Owl"} for seed in (5, 6, 7)]
    assert answer._request_id is not None


@pytest.mark.parametrize(("prompt", "label"), [("7", 7), ("cat", 0), ("  Dog ", 1), ("great-owl", 2)])
def test_a_prompt_names_a_class(client: openai.OpenAI, prompt: str, label: int) -> None:
    """By index, name or slug."""
    answer = client.images.generate(prompt=prompt)
    assert answer.data is not None
    assert [image.class_label for image in answer.data] == [label]  # type: ignore[attr-defined]


def test_an_empty_prompt_leaves_the_class_to_the_seed(client: openai.OpenAI, tiny: Server) -> None:
    """As a null class does, and null stands for a field that is left out."""
    answer = client.images.generate(prompt="", n=None, size=None, model=None, extra_body={"seed": 3})
    assert answer.data is not None
    assert answer.data[0].b64_json == own(tiny, seed=3)["images"][0]["b64_json"]


def test_lossy_formats(client: openai.OpenAI, tiny: Server) -> None:
    """`output_compression` is the quality, and so is an integer `quality` of our own."""
    want = own(tiny, seed=1, output_format="webp", quality=40)["images"][0]["b64_json"]
    one = client.images.generate(prompt="", output_format="webp", output_compression=40, extra_body={"seed": 1})
    two = client.images.generate(prompt="", output_format="webp", extra_body={"seed": 1, "quality": 40})
    assert one.data is not None
    assert two.data is not None
    assert one.data[0].b64_json == two.data[0].b64_json == want


def test_stream(client: openai.OpenAI, tiny: Server) -> None:
    """Partial images come evenly before the last step, then each image once, complete."""
    stream = client.images.generate(
        prompt="3", n=2, stream=True, partial_images=3, extra_body={"num_inference_steps": 8, "seed": 9}
    )
    with stream:
        events: list[Any] = list(stream)
    for index in range(2):
        mine = [event for event in events if event.index == index]
        *partial, completed = mine
        assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
        assert [event.partial_image_index for event in partial] == [0, 1, 2]
        assert [event.step for event in partial] == [2, 4, 6]
        assert completed.type == "image_generation.completed"
        assert completed.usage.total_tokens == 0
        assert {event.seed for event in mine} == {9 + index}
        assert {event.size for event in mine} == {"16x16"}
    want = own(tiny, class_labels=3, batch_size=2, num_inference_steps=8, seed=9)["images"]
    done = {event.index: event.b64_json for event in events if event.type == "image_generation.completed"}
    assert done == {image["index"]: image["b64_json"] for image in want}


def test_stream_without_partial_images(client: openai.OpenAI) -> None:
    """By default only the image comes; `callback_steps` of our own asks for previews in OpenAI's events."""
    plain = client.images.generate(prompt="", stream=True, extra_body={"steps": 5})
    assert [event.type for event in plain] == ["image_generation.completed"]
    own_way = client.images.generate(prompt="", stream=True, extra_body={"steps": 5, "callback_steps": 2})
    found: list[Any] = list(own_way)
    assert [getattr(event, "step", None) for event in found] == [2, 4, None]
    assert [event.partial_image_index for event in found[:2]] == [0, 1]


def test_partial_images_have_the_format_of_the_image(client: openai.OpenAI) -> None:
    """A preview asked for as JPEG is one."""
    stream = client.images.generate(
        prompt="", stream=True, partial_images=1, output_format="jpeg", extra_body={"steps": 2}
    )
    for event in stream:
        data = base64.b64decode(event.b64_json)
        assert data.startswith(b"\xff\xd8")
        assert pixels(data).shape == (16, 16, 3)
        assert event.output_format == "jpeg"


@pytest.mark.anyio
async def test_async_client(tiny: Server) -> None:
    """The asynchronous client gets the same, streams included."""
    async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.images.generate(prompt="4", extra_body={"seed": 2, "steps": 3})
        stream = await client.images.generate(
            prompt="4", stream=True, partial_images=2, extra_body={"seed": 2, "steps": 3}
        )
        events = [event async for event in stream]
        assert [model.id async for model in client.models.list()] == ["tiny"]
    assert [event.type.rsplit(".")[1] for event in events] == ["partial_image", "partial_image", "completed"]
    assert answer.data is not None
    assert events[-1].b64_json == answer.data[0].b64_json


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "no such class"}, "prompt", "unknown_class"),
    ({"prompt": "10"}, "prompt", "class_out_of_range"),
    ({"prompt": "", "n": 0}, "n", "greater_than_equal"),
    ({"prompt": "", "n": 65}, "n", "batch_size_too_large"),
    ({"prompt": "", "size": "1024x1024"}, "size", "size_not_available"),
    ({"prompt": "", "model": "gpt-image-2"}, "model", "unknown_model"),
    ({"prompt": "", "response_format": "url"}, "response_format", "literal_error"),
    ({"prompt": "", "quality": "hd"}, "quality", "quality_not_available"),
    ({"prompt": "", "style": "vivid"}, "style", "unsupported_parameter"),
    ({"prompt": "", "background": "transparent"}, "background", "literal_error"),
    ({"prompt": "", "output_format": "gif"}, "output_format", "literal_error"),
    ({"prompt": "", "output_compression": 50}, "output_compression", "quality_of_lossless"),
    ({"prompt": "", "partial_images": 2}, "partial_images", "only_with_stream"),
    ({"prompt": "", "extra_body": {"zoom": 2}}, "zoom", "extra_forbidden"),
    ({"prompt": "", "n": 2, "extra_body": {"batch_size": 2}}, "n", "conflict"),
    ({"prompt": "1", "extra_body": {"class_labels": 1}}, "prompt", "conflict"),
    ({"prompt": "", "extra_body": {"seed": "5"}}, "seed", "seed_type"),
    ({"prompt": "", "extra_body": {"class_labels": [1, 99], "batch_size": 2}}, "class_labels[1]", "class_out_of_range"),
]


@pytest.mark.parametrize(("arguments", "param", "code"), REFUSED, ids=lambda value: str(value)[:50])
def test_refusals_name_the_field(client: openai.OpenAI, arguments: dict[str, Any], param: str, code: str) -> None:
    """What has no meaning here is refused by name, under the name that the client used."""
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.generate(**arguments)
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert error.body is not None
    assert set(error.body) == {"message", "type", "param", "code"}  # type: ignore[call-overload]
    assert error.body["message"].startswith(f"{param}: ")  # type: ignore[index]
    assert error.response.headers["content-type"] == "application/json"


def test_several_errors_come_together(client: openai.OpenAI) -> None:
    """One answer names everything that is wrong."""
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.generate(prompt="", n=0, style="vivid", extra_body={"seed": -1})
    assert all(f"{name}: " in caught.value.message for name in ("n", "style", "seed"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 2, "extra_body": {"seed": [1]}}, "seed: A list should have n (2) items."),
        ({"quality": "hd"}, "quality: Should be auto, or 1 to 100 for jpeg and webp."),
        ({"output_compression": 50}, "output_compression: Only jpeg and webp have a quality."),
    ],
)
def test_messages_speak_the_clients_words(client: openai.OpenAI, arguments: dict[str, Any], message: str) -> None:
    """Also where they mention another field, and each thing is said once."""
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.generate(prompt="", **arguments)
    assert caught.value.response.json()["error"]["message"] == message


def raw(server: Server, body: bytes, content_type: str = "application/json", **headers: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}{PATH}", content=body, headers={"Content-Type": content_type, **headers}, trust_env=False
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def test_every_refusal_is_openais_error_object(tiny: Server) -> None:
    """Also what is refused before the route is reached."""
    assert (raw(tiny, b"{").status_code, error_of(raw(tiny, b"{"))["code"]) == (400, "bad_request")
    assert raw(tiny, b'{"prompt": "", "prompt": ""}').json()["error"]["code"] == "duplicate_key"
    assert (raw(tiny, b"{}").status_code, error_of(raw(tiny, b"{}"))["param"]) == (422, "prompt")
    text = raw(tiny, b"{}", "text/plain")
    assert (text.status_code, error_of(text)["code"]) == (415, "unsupported_media_type")
    encoded = raw(tiny, b"{}", **{"Content-Encoding": "gzip"})
    assert (encoded.status_code, error_of(encoded)["code"]) == (415, "unsupported_media_type")
    large = raw(tiny, b" " * (10 * 2**20 + 1))
    assert (large.status_code, error_of(large)["code"]) == (413, "body_too_large")
    method = httpx.get(f"{tiny.url}{PATH}", trust_env=False)
    assert (method.status_code, error_of(method)["code"], method.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )
    query = httpx.post(f"{tiny.url}{PATH}?n=1", json={"prompt": ""}, trust_env=False)
    assert (query.status_code, error_of(query)["param"]) == (422, "n")


def test_accept_is_not_looked_at(tiny: Server) -> None:
    """`stream` alone chooses the form."""
    plain = raw(tiny, b'{"prompt": ""}', Accept="text/event-stream")
    assert plain.headers["content-type"] == "application/json"
    stream = raw(tiny, b'{"prompt": "", "stream": true}', Accept="application/json")
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["x-accel-buffering"] == "no"


def test_typed_errors(start_server: StartServer, tiny: Server, tmp_path: Path) -> None:
    """Keys, quotas and a loading model raise the client's own exceptions; it waits for Retry-After by itself."""
    model = tiny_model(tmp_path / "guarded")
    server = start_server(
        "--model", str(model), "--threads", "1", "--api-keys", "secret", "--max-client-image-steps", "2560"
    )
    base = f"{server.url}/v1"
    with openai.OpenAI(base_url=base, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as unknown:
            stranger.images.generate(prompt="")
        assert (unknown.value.code, unknown.value.type) == ("invalid_api_key", "authentication_error")
        with pytest.raises(openai.AuthenticationError) as listing:
            stranger.models.list()
        assert listing.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=base, api_key="secret", max_retries=0) as known:
        assert known.images.generate(prompt="").data
        full = {"num_inference_steps": 40, "callback_steps": 1}
        with known.images.generate(prompt="", n=64, stream=True, extra_body=full) as stream:
            assert next(iter(stream)).type == "image_generation.partial_image"
            with pytest.raises(openai.RateLimitError) as limited:
                known.images.generate(prompt="", n=64, extra_body={"num_inference_steps": 40})
        assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert int(limited.value.response.headers["retry-after"]) >= 1


def test_models(client: openai.OpenAI) -> None:
    """The list and a single model have what the client's types ask for; an unknown one is NotFoundError."""
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "onestep")
    assert model.created > 1_700_000_000
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"
    document = caught.value.response.json()
    assert document["type"].endswith("/not-found")
    assert document["error"]["message"] == document["detail"]


@pytest.mark.parametrize(
    ("partial_images", "steps", "shown", "period"),
    [
        (0, 8, [], 0),
        (3, 1, [], 0),
        (3, 2, [1], 1),
        (1, 2, [1], 1),
        (3, 4, [1, 2, 3], 1),
        (3, 8, [2, 4, 6], 2),
        (3, 40, [10, 20, 30], 10),
        (2, 40, [13, 27], 1),
        (1, 3, [2], 2),
        (3, 5, [1, 3, 4], 1),
    ],
)
def test_previews_are_spread_evenly(partial_images: int, steps: int, shown: list[int], period: int) -> None:
    """They lie before the last step, none twice, and the engine is asked for no more than it takes to meet them."""
    assert preview_steps(partial_images, steps) == (shown, period)


def test_a_route_that_is_not_served(client: openai.OpenAI) -> None:
    """What OpenAI has and we have not is NotFoundError with code and sentence; a refused own route has no `error`."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="tiny", input="thumbs")
    assert caught.value.code == "not_found"
    assert caught.value.response.json()["error"]["message"] == "There is nothing at this path."
    own = httpx.post(f"{client.base_url}generate", json={"batch_size": 0})
    assert (own.status_code, "error" in own.json()) == (422, False)

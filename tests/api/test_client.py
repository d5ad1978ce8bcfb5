"""`service.client` against a real server, in both its kinds."""

from __future__ import annotations

import asyncio
import inspect
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import service.client
from service.client import (
    ApiError,
    AsyncClient,
    AuthenticationFailed,
    Client,
    Done,
    GeneratedImage,
    InvalidRequest,
    NotFound,
    OnestepError,
    Queued,
    QuotaExceeded,
    Retries,
    Step,
)
from tests.api.sse import metric, wait_until
from tests.conftest import Server, StartServer
from tests.tiny import tiny_model

LABELS = {str(index): name for index, name in enumerate(["cat", "Great Owl", *"abcdefgh"])}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def tiny(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A real server with a small model of ten named classes."""
    model = tiny_model(tmp_path_factory.mktemp("model") / "tiny", sample_size=16, labels=LABELS)
    return start_server("--model", str(model), "--threads", "1")


@pytest.fixture
def client(tiny: Server) -> Iterator[Client]:
    with Client(tiny.url) as client:
        yield client


def test_all_is_what_there_is() -> None:
    """`__all__` names every public name of the module and of the errors' tree, sorted."""
    public = {name for name in vars(service.client) if not name.startswith("_")}
    assert service.client.__all__ == sorted(public)
    errors = {kind.__name__ for kind in vars(service.client._errors).values() if inspect.isclass(kind)}
    assert {name for name in errors if name in public} >= {kind.__name__ for kind in (ApiError, OnestepError)}
    tree = service.client._errors.__doc__ or ""
    assert [
        kind
        for kind in public
        if isinstance(getattr(service.client, kind), type)
        and issubclass(getattr(service.client, kind), OnestepError)
        and kind not in tree
    ] == []


def test_it_needs_nothing_of_the_service() -> None:
    """Importing it imports no torch, no web framework, and no part of the server."""
    code = "import service.client, sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = done.stdout.split()
    assert set() == {"torch", "diffusers", "fastapi", "starlette", "uvicorn", "pydantic", "numpy"} & set(loaded)
    assert {name for name in loaded if name.startswith("service.") and not name.startswith("service.client")} == set()


def test_both_clients_have_the_same_methods() -> None:
    """What one can do, the other can, with the same arguments."""

    def surface(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(m).parameters) for name, m in methods if not name.startswith("_")}

    assert surface(Client) == surface(AsyncClient)


def test_generate(client: Client, tiny: Server) -> None:
    """The answer is typed, and its images are Pillow's, with the pixels that the service made."""
    answer = client.generate(class_labels=["cat", 1, None], batch_size=3, seed=5, timesteps=(22, 0))
    assert (answer.model, answer.num_inference_steps, answer.timesteps) == ("tiny", 2, (22, 0))
    assert answer.sigmas[0] == pytest.approx(80)
    assert len(answer) == 3
    assert [image.seed for image in answer] == [5, 6, 7]
    assert [image.class_name for image in answer][:2] == ["cat", "Great Owl"]
    assert answer.timings.total_ms > 0
    raw = httpx.get(f"{tiny.url}/v1/images/tiny/great-owl/6.png?timesteps=22,0", trust_env=False)
    assert answer[1].data == raw.content
    assert isinstance(answer[1].image, Image.Image)
    assert answer[1].image.size == (16, 16)
    assert np.array_equal(np.asarray(answer[1].image), np.asarray(Image.open(io.BytesIO(raw.content))))


def test_latents(client: Client) -> None:
    """An array replaces the first noise; two different ones give different pictures."""
    one, two = np.random.default_rng(0).standard_normal((2, 1, 3, 16, 16))
    a = client.generate(latents=one.astype("float32"), seed=1)[0].data
    b = client.generate(latents=one.astype("float64"), seed=1)[0].data
    c = client.generate(latents=two.astype("float32"), seed=1)[0].data
    assert a == b != c


def test_save(client: Client, tmp_path: Path) -> None:
    """The file is the service's."""
    image = client.generate(seed=1, output_format="webp", quality=50)[0]
    image.save(tmp_path / "a.webp")
    assert (tmp_path / "a.webp").read_bytes() == image.data
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.format == "WEBP"


def test_stream(client: Client) -> None:
    """Events come typed and in order; the images are those of `generate`."""
    with client.stream(seed=3, batch_size=2, num_inference_steps=4, callback_steps=2) as events:
        found = list(events)
    assert found[0] == Queued(0)
    assert isinstance(found[-1], Done)
    steps = [event for event in found if isinstance(event, Step)]
    assert sorted((step.index, step.step) for step in steps) == [(0, 2), (1, 2)]
    assert steps[0].image.size == (16, 16)
    images = sorted((event for event in found if isinstance(event, GeneratedImage)), key=lambda image: image.index)
    assert tuple(images) == client.generate(seed=3, batch_size=2, num_inference_steps=4).images


def test_leaving_a_stream_cancels_it(client: Client, tiny: Server) -> None:
    """The engine is free soon after the block is left."""
    with client.stream(batch_size=32, num_inference_steps=40) as events:
        assert isinstance(next(events), Queued)
        assert isinstance(next(events), Step)
    wait_until("the engine is idle", 5, lambda: metric(tiny, "num_requests_running") == 0)
    assert metric(tiny, "requests_total", route="generate", outcome="cancelled") >= 1


def test_images_by_url(client: Client, tiny: Server) -> None:
    """As a picture, as a URL, and as the ETag that names its bytes."""
    picture = client.image("tiny", "great-owl", 6, steps=2)
    assert np.array_equal(
        np.asarray(picture), np.asarray(client.generate(class_labels=1, seed=6, num_inference_steps=2)[0].image)
    )
    url = client.image_url("tiny", "any", 6, timesteps=[22, 0], output_format="jpeg", quality=70)
    assert url.startswith(f"{tiny.url}/v1/images/tiny/any/6.jpeg?")
    answer = httpx.get(url, trust_env=False)
    assert answer.headers["content-type"] == "image/jpeg"
    etag = client.image_etag("tiny", "any", 6, timesteps=[22, 0], output_format="jpeg", quality=70)
    assert etag == answer.headers["etag"]


def test_models(client: Client) -> None:
    (model,) = client.models()
    assert client.model("tiny") == model
    assert (model.id, model.image_size, model.class_conditional, len(model.classes)) == ("tiny", 16, True, 10)
    assert (model.classes[1].name, model.classes[1].slug) == ("Great Owl", "great-owl")
    assert model.device == "cpu"
    assert model.batch_sizes[0].step_seconds > 0
    assert client.ready()


def test_refusals_are_typed(client: Client) -> None:
    """A wrong field is named; what is not there is NotFound."""
    with pytest.raises(InvalidRequest) as invalid:
        client.generate(seed=-1, batch_size=0)
    assert (invalid.value.status, invalid.value.slug) == (422, "invalid-request")
    assert {error.loc for error in invalid.value.errors} == {("body", "seed"), ("body", "batch_size")}
    assert "seed: " in str(invalid.value)
    assert invalid.value.request_id is not None
    with pytest.raises(InvalidRequest), client.stream(seed=-1):
        pass
    with pytest.raises(NotFound):
        client.model("none")
    with pytest.raises(NotFound):
        client.image("tiny", "no-such", 1)


@pytest.mark.anyio
async def test_async_client(tiny: Server) -> None:
    """The asynchronous client gives the same answers, many at once."""
    with Client(tiny.url) as one:
        want = [one.generate(seed=seed)[0].data for seed in range(8)]
        models = one.models()
    async with AsyncClient(tiny.url) as client:
        found = await asyncio.gather(*(client.generate(seed=seed) for seed in range(8)))
        assert [answer[0].data for answer in found] == want
        assert await client.models() == models
        assert await client.model("tiny") == models[0]
        assert await client.ready()
        assert (await client.image("tiny", "any", 3)).size == (16, 16)
        url = client.image_url("tiny", "any", 3)
        async with httpx.AsyncClient(trust_env=False) as other:
            assert await client.image_etag("tiny", "any", 3) == (await other.get(url)).headers["etag"]
        async with client.stream(seed=3, num_inference_steps=3) as events:
            kinds = [type(event) async for event in events]
        assert kinds == [Queued, Step, Step, GeneratedImage, Done]
        with pytest.raises(InvalidRequest):
            await client.generate(seed=-1)


def test_keys_and_quotas(start_server: StartServer, tmp_path: Path) -> None:
    """A wrong key and a full quota have errors of their own."""
    model = tiny_model(tmp_path / "guarded")
    server = start_server(
        "--model", str(model), "--threads", "1", "--api-keys", "secret", "--max-client-image-steps", "2560"
    )
    with Client(server.url) as stranger, pytest.raises(AuthenticationFailed):
        stranger.models()
    with Client(server.url, api_key="secret", retries=Retries(count=0)) as known:
        with known.stream(batch_size=64, num_inference_steps=40) as events:
            assert isinstance(next(events), Queued)
            with pytest.raises(QuotaExceeded) as full:
                known.generate(batch_size=64, num_inference_steps=40)
        assert full.value.retry_after is not None


def striped() -> Image.Image:
    """A picture of 16 pixels with a transparent middle."""
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[::2, :, 0] = 200
    picture[..., 3] = 255
    picture[4:8, 4:8, 3] = 0
    return Image.fromarray(picture)


def test_edits(client: Client, tmp_path: Path) -> None:
    """A picture may be Pillow's, a file's bytes or its path; what a mask leaves alone comes back exactly."""
    picture = striped()
    file = tmp_path / "picture.png"
    picture.save(file)
    answers = [
        client.edit("inpaint", source, seed=1, num_inference_steps=3, class_labels=2)[0]
        for source in (picture, file, str(file), file.read_bytes())
    ]
    assert len({answer.data for answer in answers}) == 1
    opaque = np.asarray(picture)[..., 3] == 255
    assert np.array_equal(np.asarray(answers[0].image)[opaque], np.asarray(picture)[..., :3][opaque])
    mask = Image.fromarray(np.where(opaque, 0, 255).astype(np.uint8))
    masked = client.edit("inpaint", picture.convert("RGB"), mask=mask, seed=1, num_inference_steps=3, class_labels=2)
    assert np.array_equal(np.asarray(masked[0].image)[opaque], np.asarray(picture)[..., :3][opaque])
    for edit, fields in (
        ("colorize", {"num_inference_steps": 2}),
        ("super-resolution", {"num_inference_steps": 2, "factor": 4}),
        ("stroke", {"strength": 0.5}),
        ("denoise", {"sigma": 0.5}),
    ):
        assert client.edit(edit, picture, seed=1, **fields)[0].image.size == (16, 16)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest) as refused:
        client.edit("denoise", picture, seed=1)
    assert refused.value.errors[0].loc == ("body", "sigma")


def test_an_edit_is_streamed(client: Client) -> None:
    with client.stream_edit("inpaint", striped(), seed=1, num_inference_steps=3) as events:
        kinds = [type(event) for event in events]
    assert kinds == [Queued, Step, Step, GeneratedImage, Done]


def test_interpolate(client: Client) -> None:
    """Its ends are the pictures of the two seeds, and each image says where it stands between them."""
    answer = client.interpolate(3, 4, frames=3, class_labels=1)
    assert [image.t for image in answer] == [0, 0.5, 1]
    ends = [client.generate(seed=seed, class_labels=1)[0].image for seed in (3, 4)]
    for image, end in zip((answer[0], answer[2]), ends, strict=True):
        assert np.array_equal(np.asarray(image.image), np.asarray(end))

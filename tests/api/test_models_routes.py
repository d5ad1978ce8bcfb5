"""GET /v1/models: what is served, in OpenAI's shape and with what clients need."""

from __future__ import annotations

import httpx
import pytest
from pydantic import TypeAdapter

from service.api.answers import ModelList
from tests.api.conftest import MakeStand, Stand
from tests.api.counting_engine import model_info

pytestmark = pytest.mark.anyio


async def test_list(make_stand: MakeStand) -> None:
    """Every model, the default first, each as its own route gives it."""
    stand = make_stand(model_info("second-is-not-first"), model_info("a", classes=None, channels=1))
    async with stand.client() as client:
        answer = (await client.get("/v1/models")).json()
        TypeAdapter(ModelList).validate_python(answer, strict=True)
        assert answer["object"] == "list"
        assert [model["id"] for model in answer["data"]] == ["second-is-not-first", "a"]
        for model in answer["data"]:
            assert (await client.get(f"/v1/models/{model['id']}")).json() == model
    unconditional = answer["data"][1]
    assert unconditional["class_conditional"] is False
    assert unconditional["classes"] == []
    assert unconditional["channels"] == 1


async def test_model(client: httpx.AsyncClient) -> None:
    """Shape, classes with their slugs, noise levels, and what the engine measured."""
    model = (await client.get("/v1/models/avatars")).json()
    assert model["object"] == "model"
    assert model["revision"] == model_info().revision
    assert model["classes"][1] == {"index": 1, "name": "Big Dog", "slug": "big-dog"}
    assert (model["num_train_timesteps"], model["sigma_min"], model["sigma_max"]) == (40, 0.002, 80.0)
    assert (model["device"], model["dtype"]) == ("cpu", "float32")
    assert model["batch_sizes"] == [{"size": 4, "step_seconds": 0.02}, {"size": 8, "step_seconds": 0.03}]
    assert model["license"] == "CC0-1.0"


async def test_before_the_model_is_ready(stand: Stand) -> None:
    """What is known without the engine is told at once; the rest is null."""
    stand.engine.fingerprint = None
    async with stand.client() as client:
        model = (await client.get("/v1/models/avatars")).json()
    assert (model["device"], model["dtype"], model["batch_sizes"]) == (None, None, [])
    assert model["image_size"] == 8


async def test_refusals(client: httpx.AsyncClient) -> None:
    """An unknown model is 404, an unknown parameter 422."""
    assert (await client.get("/v1/models/nobody")).status_code == 404
    assert (await client.get("/v1/models?limit=5")).status_code == 422
    assert (await client.get("/v1/models/avatars?x=1")).status_code == 422
    assert (await client.post("/v1/models")).status_code == 405

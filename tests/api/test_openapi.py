"""The OpenAPI document is complete enough for a generator: ids, examples and refusals of every operation."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from PIL import Image
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from service.api.problems import PROBLEMS
from tests.api.apps import client_of_app

EXPECTED = {
    "livez",
    "readyz",
    "healthz",
    "metrics",
    "generate",
    "inpaint",
    "colorize",
    "super_resolution",
    "stroke",
    "denoise",
    "interpolate",
    "get_image",
    "list_models",
    "get_model",
    "create_image",
    "create_image_edit",
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document of a service with keys, which has every refusal there is."""
    with client_of_app(api_keys=("k",)) as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
        return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_every_operation_has_an_id_a_summary_and_a_tag(document: dict[str, Any]) -> None:
    found = list(operations(document))
    assert {operation["operationId"] for _, _, operation in found} == EXPECTED
    assert len(found) == len(EXPECTED)
    for path, _, operation in found:
        assert operation["summary"], path
        assert operation["description"], path
        assert operation["tags"], path


def bodies(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every body that is sent or answered: a name, its media type, its description."""
    for path, _, operation in operations(document):
        for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{path} request", media_type, body
        for status, response in operation["responses"].items():
            for media_type, body in response.get("content", {}).items():
                if status != "default":
                    yield f"{path} {status}", media_type, body


def is_text(media_type: str) -> bool:
    return media_type.startswith("text/") or media_type.endswith("json")


def test_every_text_body_has_an_example_that_fits_its_schema(document: dict[str, Any]) -> None:
    """Of requests, answers and refusals alike."""
    registry = Registry().with_resource("urn:api", Resource.from_contents(document, DRAFT202012))
    checked = 0
    for name, media_type, body in bodies(document):
        if not is_text(media_type):
            continue
        examples = [example["value"] for example in body.get("examples", {}).values()]
        if "example" in body:
            examples.append(body["example"])
        assert examples, f"{name} {media_type}"
        schema = {"$id": "urn:api", **document, **body["schema"]} if "$ref" in body["schema"] else body["schema"]
        for example in examples:
            OAS31Validator(schema, registry=registry).validate(example)
            checked += 1
    assert checked > 100


def test_pictures_in_examples_can_be_opened(document: dict[str, Any]) -> None:
    example = document["paths"]["/v1/generate"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    with Image.open(io.BytesIO(base64.b64decode(example["images"][0]["b64_json"]))) as image:
        image.load()


def test_every_problem_is_shown_somewhere(document: dict[str, Any]) -> None:
    """Each slug has an example; 405 and 431 are no operation's own, and the bare 503 is of no use to a client."""
    shown = {slug for _, _, body in bodies(document) for slug in body.get("examples", {}) if slug in PROBLEMS}
    assert set(PROBLEMS) - shown == {"method-not-allowed", "head-too-large", "unavailable"}


def test_statuses(document: dict[str, Any]) -> None:
    """A route that makes images lists every status of the contract that it can give."""
    paths = document["paths"]
    work = {"401", "422", "429", "500", "503", "504"}
    sent = {"400", "408", "413", "415"}
    assert set(paths["/v1/generate"]["post"]["responses"]) == {"200", "default", "406"} | work | sent
    assert set(paths["/v1/edits/inpaint"]["post"]["responses"]) == {"200", "default", "406"} | work | sent
    assert set(paths["/v1/images/generations"]["post"]["responses"]) == {"200", "default"} | work | sent
    url = paths["/v1/images/{model}/{class}/{seed}.{format}"]["get"]
    assert set(url["responses"]) == {"200", "304", "404", "default"} | work
    assert set(paths["/readyz"]["get"]["responses"]) == {"200", "503", "default"}
    for path in ("/v1/generate", "/v1/images/edits"):
        for status in ("429", "503"):
            assert "Retry-After" in paths[path]["post"]["responses"][status]["headers"]


def test_openai_routes_show_openais_errors(document: dict[str, Any]) -> None:
    for path in ("/v1/images/generations", "/v1/images/edits"):
        (content,) = document["paths"][path]["post"]["responses"]["422"]["content"].items()
        assert content[0] == "application/json"
        error = content[1]["examples"]["invalid-request"]["value"]["error"]
        assert (error["param"], error["type"]) == ("n", "invalid_request_error")


def test_examples_of_refusals_are_what_the_service_answers() -> None:
    """A real refusal has the fields of the example, and their types."""
    with client_of_app() as client:
        document = client.get("/openapi.json").json()
        for path in ("/v1/generate", "/v1/images/generations"):
            real = client.post(path, json={"seed": -1, "prompt": ""} if "images" in path else {"seed": -1})
            content = document["paths"][path]["post"]["responses"]["422"]["content"]
            example = content[real.headers["content-type"]]["examples"]["invalid-request"]["value"]
            assert set(real.json()) == set(example)


# fields that another one, or a header, may stand in for, or that only some requests may have
SOMETIMES = {
    *("batch_size", "n", "num_inference_steps", "steps", "timesteps", "strength"),
    *("output_format", "output_compression", "callback_steps", "partial_images", "timeout"),
}


def test_published_defaults_may_always_be_sent(document: dict[str, Any]) -> None:
    """As generated clients do, whatever else they send."""
    found = [
        (path, name)
        for path, method, operation in operations(document)
        for content in operation.get("requestBody", {}).get("content", {}).values()
        for name, value in content["schema"]["properties"].items()
        if method == "post" and name in SOMETIMES and value.get("default") is not None
    ]
    assert found == [("/v1/edits/denoise", "num_inference_steps")]  # which can be nothing else

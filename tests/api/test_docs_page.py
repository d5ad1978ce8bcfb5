"""The API reference, for people and for programs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from service.api.openai_errors import IMAGE_PATHS
from service.api.problems import PROBLEMS
from tests.api.apps import client_of_app


def openapi(**settings: Any) -> dict[str, Any]:
    with client_of_app(**settings) as client:
        document: dict[str, Any] = client.get("/openapi.json").json()
        return document


def test_the_page_loads_everything_from_the_service_by_relative_addresses() -> None:
    with client_of_app() as client:
        page = client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        places = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert {"docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js", "openapi.json"} <= set(places)
        for place in places:
            if not place.startswith("data:"):
                assert not place.startswith(("/", "http"))
                assert client.get(f"/{place}").status_code == 200
        assert "SwaggerUIBundle" in client.get("/docs/swagger-ui-bundle.js").text


def test_the_page_needs_nothing_that_its_policy_forbids() -> None:
    with client_of_app() as client:
        page = client.get("/docs")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert re.search(r"<script(?![^>]*\bsrc=)", page.text) is None
        assert re.search(r"<style|\bstyle=|\bon\w+=", page.text) is None
        assert client.get("/docs/start.js").headers["content-type"].startswith("text/javascript")
        assert client.get("/docs/swagger-ui.css").headers["content-type"].startswith("text/css")


@pytest.mark.parametrize("settings", [{}, {"api_keys": ("k",), "public_images": True}, {"root_path": "/x"}])
def test_the_document_is_valid_openapi(settings: dict[str, Any]) -> None:
    validate(openapi(**settings))


def test_operation_ids_are_unique_and_head_is_left_out() -> None:
    operations = [(method, operation) for path in openapi()["paths"].values() for method, operation in path.items()]
    ids = [operation["operationId"] for _, operation in operations]
    assert len(ids) == len(set(ids))
    assert {method for method, _ in operations} == {"get", "post"}


def test_every_operation_may_answer_with_a_problem() -> None:
    document = openapi()
    for path, methods in document["paths"].items():
        kind = "application/json" if path in IMAGE_PATHS else "application/problem+json"  # OpenAI's error object
        for operation in methods.values():
            assert list(operation["responses"]["default"]["content"]) == [kind]
    types = document["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]
    assert [one.rsplit("/", 1)[1] for one in types] == list(PROBLEMS)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_keys_are_documented_where_they_are_needed() -> None:
    paths = openapi(api_keys=("k",))["paths"]
    assert "security" in paths["/v1/generate"]["post"]
    assert "security" not in paths["/livez"]["get"]
    assert "security" not in openapi()["paths"]["/v1/generate"]["post"]

"""Who may come in, and from which pages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from service.api.auth import ApiKeys, client_of
from tests.api.apps import client_of_app
from tests.api.test_shell import problem

KEYS = ("first-key", "second-key")
ORIGIN = "https://app.example"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer  second-key"},
        {"X-API-Key": "second-key"},
        {"Authorization": "Basic dTpw", "X-API-Key": "first-key"},
    ],
)
def test_a_key_opens_the_routes(headers: dict[str, str]) -> None:
    with client_of_app(api_keys=KEYS) as client:
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer first-key second-key"},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"X-API-Key": ""},
        {"X-API-Key": "first-ke"},
        {"X-API-Key": "first-key,second-key"},
        {"X-API-Key": "FIRST-KEY"},
        {"X-API-Key": b"\xff\xfe"},
        {"Cookie": "key=first-key"},
    ],
)
def test_a_missing_or_wrong_key_is_401(headers: dict[str, str | bytes]) -> None:
    with client_of_app(api_keys=KEYS) as client:
        answer = client.get("/v1/models?key=first-key", headers=headers)
    problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/healthz", "/docs", "/docs/start.js", "/docs/swagger-ui.css", "/openapi.json"]
)
def test_probes_and_docs_need_no_key(path: str) -> None:
    with client_of_app(api_keys=KEYS) as client:
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("POST", "/v1/generate"),
        ("GET", "/v1/images/avatars/any/1.png"),
        ("GET", "/unknown"),
        ("GET", "/%2Flivez"),
        ("GET", "/livez/"),
        ("GET", "/livez%2f..%2fmetrics"),
        ("GET", "/docs/../metrics"),
        ("POST", "/docs/"),
    ],
)
def test_everything_else_needs_one(method: str, path: str) -> None:
    with client_of_app(api_keys=KEYS) as client:
        problem(client.request(method, path), 401, "unauthorized")


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits"])
def test_openai_routes_refuse_in_openais_words(path: str) -> None:
    with client_of_app(api_keys=KEYS) as client:
        answer = client.post(path, json={})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_public_images_opens_get_and_head_of_image_urls_only() -> None:
    with client_of_app(api_keys=KEYS, public_images=True) as client:
        assert client.get("/v1/images/avatars/any/1.png").status_code == 200
        assert client.head("/v1/images/avatars/any/1.png").status_code == 200
        assert client.post("/v1/images/generations", json={}).status_code == 401
        problem(client.get("/v1/models"), 401, "unauthorized")


def test_below_a_prefix_the_same_paths_are_free() -> None:
    with client_of_app(api_keys=KEYS, root_path="/images") as client:
        assert client.get("/images/livez").status_code == 200
        assert client.get("/livez").status_code == 200
        problem(client.get("/images/metrics"), 401, "unauthorized")
        problem(client.get("/imageslivez"), 401, "unauthorized")


def test_without_keys_in_the_settings_everything_is_open() -> None:
    with client_of_app() as client:
        assert client.get("/v1/models", headers={"X-API-Key": "anything"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8::9", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::%eth0/64"),
        ("x" * 999, "x" * 64),
        (":" * 999, ":" * 64),
        (None, "unknown"),
    ],
)
def test_without_a_key_a_client_is_its_address_or_ipv6_network(host: str | None, name: str) -> None:
    scope: dict[str, Any] = {"type": "http", "client": host and (host, 1), "headers": [], "path": "/"}

    async def app(*_: object) -> None:
        assert client_of(Request(scope)) in (name, "fe80::/64")

    asyncio.run(ApiKeys(app, (), False)(scope, None, None))  # type: ignore[arg-type]
    assert "client" in scope["state"]


def test_an_open_origin_may_read_answers_and_errors_with_the_exposed_headers() -> None:
    with client_of_app(cors_origins=(ORIGIN,), api_keys=KEYS) as client:
        for path in ("/livez", "/nope", "/v1/models"):
            headers = client.get(path, headers={"Origin": ORIGIN}).headers
            assert headers["access-control-allow-origin"] == ORIGIN
            exposed = headers["access-control-expose-headers"].lower().split(", ")
            assert {"x-request-id", "x-seed", "x-class-label", "x-model-revision", "server-timing"} <= set(exposed)
            assert {"etag", "retry-after"} <= set(exposed)


def test_answers_vary_by_origin_also_for_other_origins_and_none() -> None:
    with client_of_app(cors_origins=(ORIGIN,)) as client:
        for sent in ({"Origin": ORIGIN}, {"Origin": "https://evil.example"}, {}):
            answer = client.get("/livez", headers=sent)
            assert "Origin" in answer.headers["vary"].split(", ")
            assert ("access-control-allow-origin" in answer.headers) == (sent.get("Origin") == ORIGIN)


def test_a_route_that_varies_by_accept_keeps_that() -> None:
    with client_of_app(cors_origins=(ORIGIN,)) as client:
        vary = client.get("/metrics", headers={"Origin": ORIGIN}).headers["vary"]
    assert {part.strip() for part in vary.split(",")} == {"Accept", "Origin"}


def preflight(origin: str, method: str = "POST", headers: str = "authorization, content-type") -> dict[str, str]:
    """The headers with which a browser asks first."""
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }


def test_openais_client_reads_why_it_has_no_key() -> None:
    """Of routes that we do not have, too: nobody has looked whether there are."""
    with client_of_app(api_keys=KEYS) as client:
        error = client.post("/v1/chat/completions", json={}).json()["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")


def test_a_preflight_of_an_open_origin_is_answered_without_a_key() -> None:
    with client_of_app(cors_origins=(ORIGIN,), api_keys=KEYS) as client:
        asked = "authorization,content-type,x-api-key,x-stainless-lang"  # as OpenAI's client in a page sends
        answer = client.options("/v1/generate", headers=preflight(ORIGIN, headers=asked))
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == asked
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        preflight("https://evil.example"),
        preflight("https://app.example.evil.example"),
        preflight("null"),
        preflight(ORIGIN, method="DELETE"),
    ],
)
def test_any_other_preflight_is_refused_with_a_problem(headers: dict[str, str]) -> None:
    with client_of_app(cors_origins=(ORIGIN,)) as client:
        answer = client.options("/v1/generate", headers=headers)
    problem(answer, 400, "bad-request")
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-origin" not in answer.headers


def test_a_star_opens_to_all_origins() -> None:
    with client_of_app(cors_origins=("*",)) as client:
        assert client.get("/livez", headers={"Origin": ORIGIN}).headers["access-control-allow-origin"] == "*"
        asked = "authorization,content-type,x-api-key,x-stainless-lang"  # as OpenAI's client in a page sends
        answer = client.options("/v1/generate", headers=preflight(ORIGIN, headers=asked))
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


def test_without_origins_in_the_settings_no_page_of_another_origin_may_read() -> None:
    with client_of_app() as client:
        assert "access-control-allow-origin" not in client.get("/livez", headers={"Origin": ORIGIN}).headers
        assert client.options("/v1/generate", headers=preflight(ORIGIN)).status_code == 405

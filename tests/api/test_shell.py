"""What every answer has, whatever the route: ids, headers, problem documents, metrics, a line in the log."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from fastapi import FastAPI, Request
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from service import errors
from service.logs import JsonFormatter
from service.metrics import EngineMetrics, Metrics
from tests.api.apps import client_of_app, make_app

READABLE = (
    "/",
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/v1/models",
    "/v1/models/avatars",
    "/v1/images/avatars/any/1.png",
)


def problem(answer: Any, status: int, slug: str) -> dict[str, Any]:
    """The document of a refusal, after checking what every refusal has."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["type"]) == (status, f"urn:onestep:problems/{slug}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert body["status"] == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["title"]
    assert body["detail"]
    return body


def app_raising(error: Exception) -> FastAPI:
    """An application with a route that fails."""
    app = make_app()

    @app.get("/fails")
    async def fails() -> None:
        raise error

    return app


def test_an_unknown_path_is_a_problem() -> None:
    with client_of_app() as client:
        body = problem(client.get("/no/such/path?key=secret"), 404, "not-found")
    assert body["instance"] == "/no/such/path"


def test_a_wrong_method_is_a_problem_that_lists_the_right_ones() -> None:
    with client_of_app() as client:
        for path in ("/v1/generate", "/v1/edits/inpaint", *READABLE):
            answer = client.delete(path)
            allowed = {"GET", "HEAD"} if path in READABLE else {"POST"}
            problem(answer, 405, "method-not-allowed")
            assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", [*READABLE, "/nope"])
def test_head_is_get_without_the_body(path: str) -> None:
    with client_of_app() as client:
        get, head = client.get(path), client.head(path)
    assert head.status_code == get.status_code
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_trailing_slash_is_another_path() -> None:
    with client_of_app() as client:
        assert client.get("/livez/", follow_redirects=False).status_code == 404


def test_an_unexpected_fault_is_a_500_that_tells_nothing_and_is_logged_under_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with client_of_app(app_raising(ZeroDivisionError("secret"))) as client:
        answer = client.get("/fails", headers={"X-Request-ID": "mine-1"})
    assert "secret" not in answer.text
    assert problem(answer, 500, "internal-error")["request_id"] == "mine-1"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "status", "slug", "retry"),
    [
        (errors.Overloaded("later", retry_after=7.2), 503, "overloaded", "8"),
        (errors.QuotaExceeded("enough", retry_after=3), 429, "quota-exceeded", "3"),
        (errors.Draining("stopping"), 503, "draining", None),
        (errors.DeadlineExceeded("late"), 504, "deadline-exceeded", None),
    ],
)
def test_an_error_of_the_core_is_answered_with_its_row(
    error: errors.ServiceError, status: int, slug: str, retry: str | None
) -> None:
    with client_of_app(app_raising(error)) as client:
        answer = client.get("/fails")
    assert problem(answer, status, slug)["detail"] == str(error)
    assert answer.headers.get("retry-after") == retry


def test_a_failed_inference_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with client_of_app(app_raising(errors.InferenceFailed("not finite"))) as client:
        problem(client.get("/fails"), 500, "inference-failed")
    assert "not finite" in caplog.text


def test_the_frameworks_own_validation_never_repeats_the_input() -> None:
    app = make_app()

    @app.get("/typed/{number}")
    async def typed(number: int) -> int:
        return number

    with client_of_app(app) as client:
        answer = client.get("/typed/sesame")
    body = problem(answer, 422, "invalid-request")
    assert [(error["loc"], error["code"]) for error in body["errors"]] == [(["path", "number"], "int_parsing")]
    assert "sesame" not in json.dumps({**body, "instance": ""})


@pytest.mark.parametrize("own", ["a", "trace.id_1-2", "x" * 128])
def test_a_clients_own_request_id_comes_back(own: str) -> None:
    with client_of_app() as client:
        assert client.get("/livez", headers={"X-Request-ID": own}).headers["x-request-id"] == own


@pytest.mark.parametrize("own", ["", "a b", "x" * 129, "<script>", "a\tb", "caf\u00e9".encode().decode("latin-1")])
def test_any_other_request_id_is_replaced(own: str) -> None:
    with client_of_app() as client:
        given = client.get("/livez", headers={"X-Request-ID": own.encode("latin-1")}).headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9A-HJKMNP-TV-Z]{26}", given)


def test_two_request_ids_in_one_request_are_replaced() -> None:
    with client_of_app() as client:
        answer = client.get("/livez", headers=[("X-Request-ID", "a"), ("X-Request-ID", "b")])
    assert answer.headers["x-request-id"].startswith("req_")


def test_new_request_ids_differ_and_sort_by_time() -> None:
    with client_of_app() as client:
        ids = [client.get("/livez").headers["x-request-id"] for _ in range(20)]
    assert len(set(ids)) == 20
    assert [one[:12] for one in ids] == sorted(one[:12] for one in ids)


@pytest.mark.parametrize("path", ["/livez", "/nope", "/docs", "/metrics"])
def test_every_answer_has_the_security_headers(path: str) -> None:
    with client_of_app() as client:
        headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_livez_answers_while_the_model_loads_and_readyz_says_why_not() -> None:
    app = make_app()
    app.state.context.engine.fingerprint = None
    with client_of_app(app) as client:
        assert client.get("/livez").json() == {"status": "alive"}
        for path in ("/readyz", "/healthz"):
            assert problem(client.get(path), 503, "not-ready")["detail"] == "The model is loading."
        app.state.context.engine.fingerprint = "f"
        assert client.get("/readyz").json() == {"status": "ready"}


def test_readyz_is_503_as_soon_as_the_service_drains() -> None:
    app = make_app()
    app.state.lifecycle.draining = True
    with client_of_app(app) as client:
        problem(client.get("/readyz"), 503, "draining")
        assert client.get("/livez").status_code == 200


def test_answers_end_their_connection_once_the_listener_is_closed() -> None:
    app = make_app()
    with client_of_app(app) as client:
        assert "connection" not in client.get("/livez").headers
        app.state.lifecycle.closing = True
        assert client.get("/livez").headers["connection"] == "close"


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a Prometheus text, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_template_from_a_closed_set() -> None:
    with client_of_app() as client:
        for path in ("/livez", "/no/1", "/no/2", "/v1/models/avatars", "/v1/models/nope"):
            client.get(path)
        client.request("BREW", "/livez")
        found = samples(client.get("/metrics").text)
    counted = {
        (labels["handler"], labels["method"], labels["status"]): value
        for (name, pairs), value in found.items()
        if name == "onestep_http_requests_total"
        for labels in [dict(pairs)]
    }
    assert counted == {
        ("/livez", "GET", "200"): 1,
        ("unmatched", "GET", "404"): 2,
        ("/v1/models/{model}", "GET", "200"): 1,
        ("/v1/models/{model}", "GET", "404"): 1,
        ("/livez", "other", "405"): 1,
    }
    assert found["onestep_http_request_duration_seconds_count", frozenset({("handler", "/livez")})] == 2
    assert found["onestep_request_failures_total", frozenset({("reason", "not-found")})] == 3


def test_a_probe_that_says_no_is_no_failed_request() -> None:
    app = make_app()
    app.state.context.engine.fingerprint = None
    with client_of_app(app) as client:
        client.get("/readyz")
        assert "onestep_request_failures_total{" not in client.get("/metrics").text


@pytest.mark.parametrize("version", ["abc", "1.x.0"])
def test_metrics_come_as_text_to_whoever_asks_for_what_there_is_not(version: str) -> None:
    with client_of_app() as client:
        answer = client.get("/metrics", headers={"Accept": f"application/openmetrics-text;version={version}"})
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/plain")


def test_engines_that_were_never_lost_have_a_series() -> None:
    """Prometheus sees no increase in one that begins with its first event."""
    metrics = Metrics()
    EngineMetrics(metrics)
    text = generate_latest(metrics.registry).decode()
    assert 'onestep_engine_restarts_total{reason="killed"} 0.0' in text


def test_metrics_come_as_text_or_openmetrics() -> None:
    with client_of_app() as client:
        text = client.get("/metrics")
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert ("process_resident_memory_bytes", frozenset()) in samples(text.text)
        accept = "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5"
        answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "onestep_build" in {family.name for family in parse_openmetrics(answer.text)}


def test_two_apps_in_one_process_have_metrics_of_their_own() -> None:
    with client_of_app() as one, client_of_app() as other:
        one.get("/livez")
        assert 'handler="/livez"' in one.get("/metrics").text
        assert 'handler="/livez"' not in other.get("/metrics").text


def test_metrics_leave_the_app_when_they_have_a_port_of_their_own() -> None:
    with client_of_app(metrics_port=9123) as client:
        problem(client.get("/metrics"), 404, "not-found")


def test_the_access_log_has_one_line_with_what_matters_and_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with client_of_app(api_keys=("top-secret",)) as client:
        client.post(
            "/v1/generate?token=hush",
            headers={"Authorization": "Bearer top-secret", "X-Request-ID": "mine"},
            json={"no_such_field": "hidden"},
        )
    (record,) = [record for record in caplog.records if record.name == "onestep.access"]
    line = json.loads(JsonFormatter().format(record))
    assert (line["method"], line["path"], line["handler"], line["status"]) == (
        "POST",
        "/v1/generate",
        "/v1/generate",
        422,
    )
    assert line["duration_ms"] > 0
    assert line["bytes"] > 100
    assert line["client"].startswith("key-")
    for secret in ("secret", "hush", "hidden"):
        assert secret not in json.dumps(line)


def test_probes_are_not_in_the_access_log_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with client_of_app() as client:
        client.get("/livez")
        client.get("/metrics")
    assert [record for record in caplog.records if record.name == "onestep.access"] == []


@pytest.mark.parametrize("path", ["/livez", "/images/livez"])
def test_the_service_answers_below_its_prefix_whether_or_not_the_proxy_strips_it(path: str) -> None:
    with client_of_app(root_path="/images") as client:
        assert client.get(path).json() == {"status": "alive"}
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/images"}]
        assert client.get(path.replace("livez", "v1/models/nope")).json()["error"]["code"] == "model_not_found"


def test_a_route_sees_the_request_as_the_client_of_its_key_or_address() -> None:
    from service.api.auth import client_of

    app = make_app(api_keys=("key-one", "key-two"), public_images=True)

    @app.get("/v1/images/whoami")
    async def whoami(request: Request) -> str:
        return client_of(request)

    with client_of_app(app) as client:
        one = client.get("/v1/images/whoami", headers={"X-API-Key": "key-one"}).json()
        same = client.get("/v1/images/whoami", headers={"Authorization": "bearer key-one"}).json()
        other = client.get("/v1/images/whoami", headers={"X-API-Key": "key-two"}).json()
        nobody = client.get("/v1/images/whoami").json()
    assert one == same
    assert len({one, other, nobody}) == 3
    assert "key-one" not in one
    assert nobody == "testclient"

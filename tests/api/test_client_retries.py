"""When `service.client` tries again, and what it makes of answers that are none."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.client import (
    ApiError,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidRequest,
    NotFound,
    Queued,
    QuotaExceeded,
    Retries,
    Unavailable,
)
from tests.conftest import free_port


class Script(httpx.BaseTransport):
    """Plays answers one after another, and notes when each was asked for."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def refusal(status: int, slug: str, **headers: str) -> httpx.Response:
    document: dict[str, Any] = {"type": f"urn:onestep:problems/{slug}", "status": status, "detail": "No."}
    return httpx.Response(status, json=document, headers=headers)


def no_models() -> httpx.Response:
    return httpx.Response(200, json={"object": "list", "data": []})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept."""
    found: list[float] = []
    monkeypatch.setattr("service.client._client.time.sleep", found.append)
    return found


def scripted(*answers: httpx.Response | Exception, **retries: Any) -> tuple[Client, Script]:
    script = Script(*answers)
    return Client("http://test", transport=script, retries=Retries(**retries)), script


def test_retry_after_is_honoured(waits: list[float]) -> None:
    """A busy service is asked again when it said, not sooner, and not much later."""
    client, script = scripted(refusal(503, "overloaded", **{"Retry-After": "7"}), no_models())
    assert client.models() == ()
    assert len(script.requests) == 2
    assert 7 <= waits[0] < 8


def test_without_retry_after_the_wait_doubles(waits: list[float]) -> None:
    """Also for a connection that fails; then the last error is raised."""
    failure = httpx.ConnectError("refused")
    client, script = scripted(failure, refusal(503, "draining"), failure, count=2, backoff=1.0)
    with pytest.raises(ConnectionFailed, match="refused"):
        client.models()
    assert len(script.requests) == 3
    assert 1 <= waits[0] <= 1.25
    assert 2 <= waits[1] <= 2.5


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(503, "overloaded", **{"Retry-After": "61"}), Unavailable),  # longer than anyone would wait
        (refusal(503, "engine-lost"), Unavailable),  # the request itself kills engines
        (refusal(429, "quota-exceeded"), QuotaExceeded),  # more than is ever allowed
        (refusal(504, "deadline-exceeded"), DeadlineExceeded),
        (refusal(500, "inference-failed"), ApiError),
        (refusal(422, "invalid-request"), InvalidRequest),
        (httpx.Response(404, text="<html>"), NotFound),
        (httpx.ReadTimeout("silent"), ConnectionFailed),
        (httpx.Response(200, text="<html>"), InvalidAnswer),
        (httpx.Response(200, json={"data": [{"id": 5}]}), InvalidAnswer),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_not_worth_another_try(answer: httpx.Response | Exception, error: type[Exception], waits: list[float]) -> None:
    """It is raised at once."""
    client, script = scripted(answer)
    with pytest.raises(error):
        client.models()
    assert (len(script.requests), waits) == (1, [])


def test_a_page_is_no_picture() -> None:
    """As a proxy may send: neither its bytes nor its headers are a picture's."""
    client, _ = scripted(httpx.Response(200, text="<html>"), httpx.Response(200, text="<html>"))
    with pytest.raises(InvalidAnswer, match="no picture"):
        client.image("tiny", "any", 3)
    with pytest.raises(InvalidAnswer, match="no ETag"):
        client.image_etag("tiny", "any", 3)


def test_a_date_is_a_retry_after_too(waits: list[float]) -> None:
    client, _ = scripted(
        refusal(429, "quota-exceeded", **{"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}), no_models()
    )
    assert client.models() == ()
    assert waits[0] < 1


@pytest.mark.parametrize(
    "body",
    [b'event: queued\ndata: {"position": 0}\n\n', b'event: queued\ndata: {"position": 0}\n\nevent: do'],
)
def test_a_stream_that_breaks_off_says_so(body: bytes) -> None:
    """An end without `done` or `error` is no end."""
    client, _ = scripted(httpx.Response(200, content=body))
    with client.stream() as events:
        assert next(events) == Queued(0)
        with pytest.raises(ConnectionFailed, match="broke off"):
            next(events)


def test_an_error_event_is_raised() -> None:
    """With the problem's own status and slug; what this client does not know is passed over."""
    body = (
        b": comment\n\nevent: news\ndata: {}\n\n"
        b'event: error\ndata: {"type": "urn:onestep:problems/deadline-exceeded", "status": 504, "detail": "Late."}\n\n'
    )
    client, _ = scripted(httpx.Response(200, content=body))
    with client.stream() as events, pytest.raises(DeadlineExceeded, match=r"Late\. \(504 deadline-exceeded\)"):
        next(events)


def test_nobody_listens() -> None:
    client = Client(f"http://127.0.0.1:{free_port()}", retries=Retries(count=0))
    with client, pytest.raises(ConnectionFailed):
        client.models()
    assert "secret" not in repr(Client("http://h", api_key="secret"))


@pytest.mark.parametrize(
    "answer",
    [
        refusal(408, "body-timeout"),
        httpx.Response(502, text="<html>"),
        refusal(429, "quota-exceeded", **{"Retry-After": "1"}),
        httpx.RemoteProtocolError("gone"),
        httpx.ReadError("reset"),
        httpx.ConnectTimeout("late"),
    ],
    ids=str,
)
def test_worth_another_try(answer: httpx.Response | Exception, waits: list[float]) -> None:
    client, script = scripted(answer, no_models())
    assert client.models() == ()
    assert len(script.requests) == 2


def test_a_long_retry_after_is_spread_by_no_more_than_the_backoff(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client._retries.random.random", lambda: 1.0)
    client, _ = scripted(refusal(503, "overloaded", **{"Retry-After": "40"}), no_models())
    client.models()
    assert waits == [40.125]

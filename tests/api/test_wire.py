"""Requests as raw bytes, to a real server: bodies, limits, and what is hardly HTTP."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator

import pytest

from service.api.openapi import PROBLEM
from service.api.problems import PROBLEMS
from tests.api.wire import JSON_HEAD, Toy, Wire, toy_server

MAX_BODY = 6 * 2**20


@pytest.fixture(scope="module")
def toy() -> Iterator[Toy]:
    """One server for the tests that leave it as it was."""
    with toy_server(max_body_bytes=MAX_BODY, body_timeout="1s", log_level="warning") as server:
        yield server


def alive(toy: Toy) -> bool:
    """Whether the server still answers."""
    return toy.get("/livez").status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"null", 422),
        (b"[]", 422),
        (b"{", 400),
        (b'{"seed":NaN}', 400),
        (b'{"seed":Infinity}', 400),
        (b'{"timeout":-Infinity}', 400),
        (b'{"timeout":1e400}', 422),
        (b'{"seed":1,"seed":2}', 422),
        (b'{"class_labels":"\\ud800"}', 422),
        (b'{"\\udfff":1}', 422),
        (b'\xef\xbb\xbf{"seed":1}', 400),
        ('{"seed":1}'.encode("utf-16"), 400),
        (b'{"class_labels":"\xff"}', 400),
        (b'{"seed":true}', 422),
        (b'{"seed":"5"}', 422),
        (b'{"seed":1.0}', 422),
        (b'{"batch_size":1.0}', 422),
        (b'{"num_inference_steps":true}', 422),
        (b'{"no_such_field":1}', 422),
        (b"[" * 100_000, 422),
    ],
)
def test_a_bad_body_is_refused_with_a_problem_and_the_connection_goes_on(toy: Toy, body: bytes, status: int) -> None:
    with toy.wire() as wire:
        answer = wire.post(body).answer()
        assert answer.status == status
        document = json.loads(answer.body)
        assert (document["status"], answer.problem) == (status, "bad-request" if status == 400 else "invalid-request")
        assert ("errors" in document) == (status == 422)
        assert wire.post(b'{"seed":1}').answer().status == 200


@pytest.mark.parametrize(
    "header", [b"Content-Encoding: gzip", b"Content-Encoding: br", b"Content-Encoding: identity, gzip"]
)
def test_an_encoded_body_is_415(toy: Toy, header: bytes) -> None:
    with toy.wire() as wire:
        assert wire.post(b"\x1f\x8b", header).answer().problem == "unsupported-media-type"


def test_a_compressed_transfer_is_415(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(JSON_HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
        assert wire.answer().problem == "unsupported-media-type"


def test_identity_is_no_encoding(toy: Toy) -> None:
    with toy.wire() as wire:
        assert wire.post({"seed": 1}, b"Content-Encoding: identity").answer().status == 200


@pytest.mark.parametrize(
    "line", [b"Content-Type: text/plain\r\n", b"", b"Content-Type: application/json; charset=utf-16\r\n"]
)
def test_another_content_type_is_415(toy: Toy, line: bytes) -> None:
    with toy.wire() as wire:
        wire.send(b"POST /v1/generate HTTP/1.1\r\nHost: t\r\n" + line + b"Content-Length: 2\r\n\r\n{}")
        assert wire.answer().problem == "unsupported-media-type"


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(JSON_HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1))
        answer = wire.answer()
        assert (answer.status, answer.problem, answer.headers["connection"]) == (413, "body-too-large", "close")
        assert wire.closed_within(3)


def test_a_client_that_waits_for_100_continue_gets_it(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(JSON_HEAD + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        assert wire.socket.recv(100).startswith(b"HTTP/1.1 100 ")
        assert wire.send(b'{"seed":1}').answer().status == 200


def test_a_client_that_sends_on_regardless_still_reads_its_413(toy: Toy) -> None:
    """The whole body is on its way before the client looks for an answer: the connection must not be reset."""
    with toy.wire() as wire:
        answer = wire.post(b" " * (MAX_BODY + 2**20)).answer()
        assert (answer.problem, answer.headers["connection"]) == ("body-too-large", "close")
        assert wire.closed_within(3)


def test_a_chunked_body_is_refused_at_the_limit(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
        for _ in range(8):
            wire.send(chunk)
        answer = wire.answer()
        assert (answer.problem, answer.headers["connection"]) == ("body-too-large", "close")
        assert wire.closed_within(3)


def test_a_chunked_body_whose_end_is_over_the_limit_closes_the_connection_too(toy: Toy) -> None:
    with toy.wire() as wire:
        body = b"%x\r\n" % (MAX_BODY + 1) + b" " * (MAX_BODY + 1) + b"\r\n0\r\n\r\n"
        answer = wire.send(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body).answer()
        assert (answer.problem, answer.headers["connection"]) == ("body-too-large", "close")
        assert wire.closed_within(3)


def test_a_body_of_exactly_the_limit_is_read(toy: Toy) -> None:
    with toy.wire() as wire:
        assert wire.post(b'{"seed":1}'.ljust(MAX_BODY)).answer().status == 200


def test_a_body_that_dribbles_is_408_after_body_timeout_whatever_arrives_meanwhile(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(JSON_HEAD + b"Content-Length: 1000\r\n\r\n")
        began = time.monotonic()
        while wire.silent_for(0.1):
            wire.send(b" ")
            assert time.monotonic() - began < 5
        answer = wire.answer()
        assert 0.9 < time.monotonic() - began < 3
        assert (answer.problem, answer.headers["connection"]) == ("body-timeout", "close")
        assert wire.closed_within(3)


def test_an_answer_given_before_the_end_of_a_body_closes_the_connection(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(b"POST /nope HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\nabc")
        answer = wire.answer()
        assert (answer.problem, answer.headers["connection"]) == ("not-found", "close")
        assert wire.closed_within(3)


def test_a_refusal_of_a_small_whole_body_keeps_the_connection(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(b"POST /nope HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc")
        answer = wire.answer()
        assert (answer.problem, answer.headers.get("connection")) == ("not-found", None)
        assert wire.get("/livez").answer().status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: t\r\nbad header\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: t\r\nX: a\x00b\r\n\r\n",
        JSON_HEAD + b"Content-Length: -1\r\n\r\n",
        JSON_HEAD + b"Content-Length: ten\r\n\r\n",
        JSON_HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        JSON_HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_a_400_problem_and_the_end_of_the_connection(toy: Toy, data: bytes) -> None:
    with toy.wire() as wire:
        answer = wire.send(data).answer()
        assert (answer.status, answer.problem) == (400, "bad-request")
        assert answer.headers["x-request-id"].startswith("req_")
        assert wire.closed_within(3)
    assert alive(toy)


def test_a_broken_chunk_ends_the_connection(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n")
        assert wire.answer().status == 400
    assert alive(toy)


def test_a_head_cannot_grow_without_end(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(b"GET /livez HTTP/1.1\r\nHost: t\r\nX: " + b"a" * 80_000)
        answer = wire.answer()
        assert (answer.status, answer.problem) == (431, "head-too-large")
        document = json.loads(answer.body)
        assert set(PROBLEM["required"]) <= set(document)
        assert (document["status"], document["title"]) == PROBLEMS["head-too-large"]
        assert wire.closed_within(3)


CHUNKED = JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
TRAILERS = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(200))


@pytest.mark.parametrize("trailers", [TRAILERS, b"X: " + b"a" * 200_000], ids=["many", "one without end"])
def test_trailers_cannot_grow_without_end(toy: Toy, trailers: bytes) -> None:
    with toy.wire() as wire:
        wire.send(CHUNKED + b"2\r\n{}\r\n0\r\n").send(trailers)
        answer = wire.answer()
        assert (answer.status, answer.problem) == (431, "head-too-large")
        assert wire.closed_within(3)


def test_nor_can_the_extensions_of_a_chunk(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(CHUNKED + b"2;" + b"a" * 200_000)
        assert wire.answer().status == 431
        assert wire.closed_within(3)


def test_trailers_after_a_refusal_end_the_connection() -> None:
    """Nobody reads the rest of a request whose key is wrong."""
    with toy_server(api_keys="right", log_level="warning") as toy, toy.wire() as wire:
        assert wire.send(CHUNKED + b"2\r\n{}\r\n0\r\n").answer().status == 401
        with contextlib.suppress(ConnectionError):  # it may be gone before all is sent
            wire.send(TRAILERS)
        assert wire.closed_within(3)


def test_a_few_trailers_are_dropped(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(
            CHUNKED
            + b"a\r\n"
            + b'{"seed":1}'
            + b"\r\n0\r\nContent-Encoding: gzip\r\nX-Request-ID: of-a-trailer\r\n\r\n"
        )
        answer = wire.answer()
        assert (answer.status, answer.headers["x-request-id"] == "of-a-trailer") == (200, False)
        assert wire.get("/livez").answer().status == 200


def test_chunks_of_single_bytes_are_a_body(toy: Toy) -> None:
    """They take five bytes more each, which a body may."""
    with toy.wire() as wire:
        body = b'{"seed":1}'.ljust(100_000)
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
        assert wire.send(CHUNKED + chunks + b"0\r\n\r\n").answer().status == 200


def test_a_request_behind_a_large_body_is_answered(toy: Toy) -> None:
    with toy.wire() as wire:
        body = b'{"seed":1}'.ljust(300_000)
        wire.post(body).get("/livez")
        assert [wire.answer().status for _ in range(2)] == [200, 200]


UPGRADE = b"Connection: upgrade\r\nUpgrade: x\r\n"


@pytest.mark.parametrize("length", [b"Content-Length: 41\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_the_body_of_an_upgrade_is_no_request(toy: Toy, length: bytes) -> None:
    """A proxy takes it for a body: the next client on its connection would have the answer to it."""
    with toy.wire() as wire:
        wire.send(JSON_HEAD + UPGRADE + length + b"\r\n")
        answer = wire.answer()
        assert (answer.status, answer.problem) == (400, "bad-request")
        wire.send(b"GET /livez HTTP/1.1\r\nHost: t\r\nX: 1234\r\n\r\n")
        assert wire.closed_within(3)


def test_nothing_is_read_behind_an_upgrade(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(b"GET /livez HTTP/1.1\r\nHost: t\r\n" + UPGRADE + b"\r\n")
        wire.send(b"GET /readyz HTTP/1.1\r\nHost: t\r\n\r\n")
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert wire.closed_within(3)


def test_a_flood_of_requests_at_once_ends_the_connection(toy: Toy) -> None:
    """Each takes a hundred times its bytes; a few are answered in order."""
    request = b"GET /livez HTTP/1.1\r\nHost: t\r\n\r\n"
    with toy.wire() as wire:
        wire.send(request * 20)
        assert [wire.answer().status for _ in range(20)] == [200] * 20
    with toy.wire() as wire, contextlib.suppress(ConnectionError):
        wire.send(request * 2000)
        for _ in range(2000):
            wire.answer()
        pytest.fail("all were answered")
    assert alive(toy)


def test_an_upgrade_is_not_made(toy: Toy) -> None:
    with toy.wire() as wire:
        wire.send(
            b"GET /livez HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert wire.answer().status == 200


@pytest.mark.parametrize("path", ["/livez?" + "a=b&" * 5000, "/%00", "/%ff%fe", "/a%0d%0aX: y", "/%2e%2e/%2e%2e/etc"])
def test_odd_paths_get_an_answer_and_inject_nothing(toy: Toy, path: str) -> None:
    with toy.wire() as wire:
        answer = wire.get(path.replace(" ", "%20")).answer()
    assert answer.status in (200, 404)
    assert "x" not in answer.headers


def left_early(toy: Toy) -> float:
    """How many clients of /v1/generate have left before their answer."""
    text = toy.get("/metrics").body.decode()
    found = re.search(
        r'^onestep_http_requests_total\{handler="/v1/generate",.*status="499"\} (.*)$', text, re.MULTILINE
    )
    return float(found[1]) if found else 0.0


def test_a_client_that_leaves_frees_its_place(toy: Toy) -> None:
    """Its request is over at once, not when its picture is done."""
    before = left_early(toy)
    with toy.wire() as wire:
        wire.post({"seed": 30_000})
        time.sleep(0.3)
        assert left_early(toy) == before
    end = time.monotonic() + 3
    while left_early(toy) == before:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_event_loop_keeps_going_while_five_hostile_megabytes_arrive(toy: Toy) -> None:
    """With 200 requests in flight, a probe is answered in time."""
    with Wire(toy.port) as probe:
        for _ in range(200):
            toy.wire().post({"seed": 4000})
        body = b'{"a":' + (b"[" + b" " * 18) * 250_000
        sender = threading.Thread(target=lambda: [toy.wire().post(body).answer() for _ in range(5)])
        sender.start()
        lags = []
        while sender.is_alive():
            began = time.perf_counter()
            probe.get("/livez").answer()
            lags.append(time.perf_counter() - began)
            time.sleep(0.002)
        sender.join()
    assert len(lags) > 20
    assert sorted(lags)[len(lags) // 2] < 0.05


def test_a_thousand_refusals_leave_the_memory_where_it_was(toy: Toy) -> None:
    import psutil

    process = psutil.Process(toy.process.pid)

    def refuse(times: int) -> None:
        with toy.wire() as wire:
            for number in range(times):
                wire.post(b'{"seed":' + b"[" * (number % 50) + b"}").answer()

    refuse(300)
    before = process.memory_info().rss
    refuse(1000)
    assert process.memory_info().rss - before < 5 * 2**20
    assert process.memory_info().rss < 200 * 2**20

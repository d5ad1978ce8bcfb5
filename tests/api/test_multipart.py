"""Forms as they should not be: each is refused, by the name of the part where there is one, and never half read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from service.api.multipart import MAX_FIELD
from tests.api.conftest import Stand
from tests.conftest import Server, StartServer
from tests.hostile_pictures import colourful, encoded
from tests.tiny import tiny_model

PICTURE = encoded(colourful(), "PNG")
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
ROUTES = ("/v1/edits/colorize", "/v1/images/edits")


@pytest.fixture(scope="module")
def tiny(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    model = tiny_model(tmp_path_factory.mktemp("model") / "tiny", "plain")
    return start_server("--model", str(model), "--log-level", "warning", "--threads", "1")


@pytest.fixture
def client(tiny: Server) -> Iterator[httpx.Client]:
    """A client; in the end the server still works."""
    with httpx.Client(base_url=tiny.url, trust_env=False, timeout=60) as client:
        yield client
        assert client.post("/v1/generate", json={}).status_code == 200


def part(disposition: bytes, content: bytes) -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + content + b"\r\n"


IMAGE = part(b'name="image"; filename="a.png"', PICTURE)
SETTINGS = part(b'name="request"', b'{"steps": 1}')


def refusal(answer: httpx.Response) -> tuple[int, str]:
    document = answer.json()
    return answer.status_code, document["error"]["message"] if "error" in document else document["detail"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("end", [b"", b"--x", b"--x-", b"--x\r\n"], ids=repr)
def test_a_form_without_its_end_is_not_read_as_if_its_last_part_were_not_there(
    client: httpx.Client, route: str, end: bytes
) -> None:
    answer = client.post(route, content=IMAGE + SETTINGS + end, headers=FORM)
    assert refusal(answer) == (400, "The form breaks off: its closing boundary is missing.")


@pytest.mark.parametrize("route", ROUTES)
def test_every_cut_through_a_form_is_refused(client: httpx.Client, route: str) -> None:
    whole = part(b'name="prompt"', b"") + IMAGE + SETTINGS + b"--x--\r\n"
    for length in range(0, len(whole) - 4, 97):
        assert client.post(route, content=whole[:length], headers=FORM).status_code == 400, length


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "json_invalid"),
        (b"{", "json_invalid"),
        (b'{"strength": NaN}', "json_invalid"),
        (b'\xef\xbb\xbf{"steps": 1}', "json_invalid"),
        (b'{"class_labels": "Gr\xfcn"}', "not_utf8"),
        (b"[]", "object_expected"),
        (b"[" * 20000, "too_many_elements"),
        (b" " * 2**17, "too_long"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_wrong_with_the_field_request_is_said_of_it(client: httpx.Client, text: bytes, code: str) -> None:
    content = IMAGE + part(b'name="request"', text) + b"--x--\r\n"
    answer = client.post(ROUTES[0], content=content, headers=FORM)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["loc"], error["code"]) == (["body", "request"], code)
    assert "body" not in error["message"].lower()


def test_a_field_of_the_request_keeps_its_own_name(client: httpx.Client) -> None:
    answer = client.post(ROUTES[0], files={"image": PICTURE, "request": (None, '{"steps": 1, "steps": 2}')})
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", "steps"]]


@pytest.mark.parametrize("route", ROUTES)
def test_many_parts_are_refused_by_their_names(client: httpx.Client, route: str) -> None:
    parts: list[tuple[str, Any]] = [("image", ("a.png", PICTURE)), ("prompt", (None, ""))]
    parts += [(f"extra_{i}", (None, "1")) for i in range(10)]
    if route == ROUTES[0]:
        del parts[1]
    answer = client.post(route, files=parts)
    assert answer.status_code == 422
    assert all(f"extra_{i}" in json.dumps(answer.json()) for i in range(10))


@pytest.mark.parametrize("route", ROUTES)
def test_a_long_field_is_refused_by_its_name(client: httpx.Client, route: str) -> None:
    answer = client.post(route, files={"image": PICTURE, "model": (None, "m" * 2**17)})
    assert answer.status_code == 422
    assert "model" in json.dumps(answer.json())
    assert "mmm" not in answer.text


@pytest.mark.anyio
async def test_text_that_comes_in_pieces_is_bounded_too(stand: Stand) -> None:
    whole = IMAGE + part(b'name="prompt"', b"a" * 3 * MAX_FIELD) + b"--x--\r\n"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), MAX_FIELD // 2):
            yield whole[start : start + MAX_FIELD // 2]

    async with stand.client() as client:
        answer = await client.post("/v1/images/edits", content=pieces(), headers=FORM)
    assert answer.status_code in (400, 422), answer.text
    assert "bytes" in refusal(answer)[1], answer.json()

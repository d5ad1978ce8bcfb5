"""GET /v1/images: one image as a URL, its ETag, its caching headers, and what it costs."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.etag import matches
from service.engine.request import MAX_SEED
from service.errors import EngineLost, OutOfReach, Overloaded
from service.models.classes import class_of_seed
from tests.api.conftest import MakeStand, Stand
from tests.api.counting_engine import model_info

pytestmark = pytest.mark.anyio

URL = "/v1/images/avatars/any/42.png"
REVISION = model_info().revision
HEX = REVISION.removeprefix("sha256:")


async def test_image(client: httpx.AsyncClient, stand: Stand) -> None:
    """The bytes, the type, and what the headers say."""
    response = await client.get(URL)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.headers["cache-control"] == "public, max-age=3600"
    assert re.fullmatch('"[0-9a-f]{32}"', response.headers["etag"])
    assert response.headers["x-seed"] == "42"
    assert response.headers["x-class-label"] == str(class_of_seed(42, 3))
    assert response.headers["x-model-revision"] == REVISION
    assert "inference;dur=" in response.headers["server-timing"]
    assert stand.engine.samples[0].class_label == class_of_seed(42, 3)


@pytest.mark.parametrize(
    ("path", "label"),
    [("2", 2), ("owl", 2), ("big-dog", 1), ("0", 0), ("002", 2)],
)
async def test_classes(client: httpx.AsyncClient, stand: Stand, path: str, label: int) -> None:
    """A class is an index or a slug."""
    assert (await client.get(f"/v1/images/avatars/{path}/1.png")).status_code == 200
    assert stand.engine.samples[0].class_label == label


async def test_equal_images_have_equal_etags(client: httpx.AsyncClient, stand: Stand) -> None:
    """Different ways to say the same image share one ETag, one run and one cache entry."""
    label = class_of_seed(42, 3)
    slug = model_info().classes[label].slug
    paths = [
        "any/42.png?steps=2",
        f"{label}/42.png?steps=2",
        f"{slug}/42.png?timesteps=20,0",
        f"{slug}/0042.png?timesteps=20%2C0",
    ]
    responses = [await client.get(f"/v1/images/avatars/{path}") for path in paths]
    responses.append(await client.get(f"/v1/images/avatars@{REVISION}/any/42.png?steps=2"))
    assert len({response.headers["etag"] for response in responses}) == 1
    assert len({response.content for response in responses}) == 1
    assert len(stand.engine.submissions) == 1


async def test_different_images_have_different_etags(make_stand: MakeStand) -> None:
    """Whatever decides the bytes decides the ETag."""
    stand = make_stand(model_info("avatars"), model_info("others"))
    urls = [
        URL,
        "/v1/images/others/any/42.png",
        "/v1/images/avatars/any/43.png",
        "/v1/images/avatars/any/42.png?steps=2",
        "/v1/images/avatars/any/42.png?timesteps=22,0",
        "/v1/images/avatars/any/42.jpeg",
        "/v1/images/avatars/any/42.webp",
        "/v1/images/avatars/any/42.jpeg?quality=50",
        f"/v1/images/avatars/{(class_of_seed(42, 3) + 1) % 3}/42.png",
    ]
    async with stand.client() as client:
        tags = [(await client.head(url)).headers["etag"] for url in urls]
        stand.engine.fingerprint = "numerics-2"
        tags.append((await client.head(URL)).headers["etag"])
    assert len(set(tags)) == len(tags)
    assert stand.engine.submissions == []


async def test_the_default_quality_may_be_said(client: httpx.AsyncClient) -> None:
    """Saying the default changes nothing."""
    plain = await client.get("/v1/images/avatars/any/1.jpeg")
    said = await client.get("/v1/images/avatars/any/1.jpeg?quality=90")
    assert (plain.content, plain.headers["etag"]) == (said.content, said.headers["etag"])


async def test_head(client: httpx.AsyncClient, stand: Stand) -> None:
    """HEAD answers GET's headers without the model, and no length that it does not know."""
    head = await client.head(URL)
    assert head.status_code == 200
    assert head.content == b""
    assert "content-length" not in head.headers
    assert stand.engine.submissions == []
    get = await client.get(URL)
    for name in ("content-type", "etag", "cache-control", "x-seed", "x-class-label", "x-model-revision"):
        assert head.headers[name] == get.headers[name]
    assert (await client.head(URL)).headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', 'W/"other" , W/{}', "*", " * ", "junk, {}"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_not_modified(client: httpx.AsyncClient, stand: Stand, form: str, method: str) -> None:
    """If-None-Match is a list or a star, compared weakly; 304 does not touch the model and has no body."""
    etag = (await client.head(URL)).headers["etag"]
    response = await client.request(method, URL, headers={"if-none-match": form.format(etag)})
    assert response.status_code == 304
    assert response.content == b""
    assert response.headers["etag"] == etag
    assert response.headers["cache-control"] == "public, max-age=3600"
    assert "content-type" not in response.headers
    assert "content-length" not in response.headers
    assert stand.engine.submissions == []


@pytest.mark.parametrize("form", ['"other"', "", "{}x", "W/", "w/{bare}", "{bare}", '"*"', "etag"])
async def test_modified(client: httpx.AsyncClient, form: str) -> None:
    """Another tag, or none, gives the image."""
    etag = (await client.head(URL)).headers["etag"]
    value = form.format("x" + etag[1:], bare=etag.strip('"'))
    assert (await client.get(URL, headers={"if-none-match": value})).status_code == 200


async def test_several_if_none_match_headers(client: httpx.AsyncClient) -> None:
    """A list may be spread over several header lines."""
    etag = (await client.head(URL)).headers["etag"]
    response = await client.get(URL, headers=[("if-none-match", '"a"'), ("if-none-match", etag)])
    assert response.status_code == 304


@given(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=60))
def test_any_if_none_match(value: str) -> None:
    """No header breaks the comparison, and only the tag itself or a star matches."""
    assert matches(value, '"0f"') == (value.strip() == "*" or '"0f"' in value)


@pytest.mark.parametrize(
    ("settings_", "visibility"),
    [({}, "public"), ({"api_keys": "key"}, "private"), ({"api_keys": "key", "public_images": True}, "public")],
)
async def test_cache_control(make_stand: MakeStand, settings_: dict[str, Any], visibility: str) -> None:
    """A pinned revision never changes; with keys only the client's own cache may keep an image."""
    stand = make_stand(**settings_)
    headers = {"authorization": "Bearer key"}
    async with stand.client() as client:
        plain = await client.get(URL, headers=headers)
        assert plain.headers["cache-control"] == f"{visibility}, max-age=3600"
        for revision in (REVISION, HEX):
            pinned = await client.get(f"/v1/images/avatars@{revision}/any/42.png", headers=headers)
            assert pinned.headers["cache-control"] == f"{visibility}, max-age=31536000, immutable"
            assert pinned.content == plain.content


@pytest.mark.parametrize(
    "path",
    [
        "nobody/any/1.png",
        "avatars@sha256:00/any/1.png",
        f"avatars@{HEX[:12]}/any/1.png",
        f"avatars@{REVISION}x/any/1.png",
        "avatars@/any/1.png",
        "@/any/1.png",
        "avatars/3/1.png",
        "avatars/-1/1.png",
        "avatars/99999999999999999999999/1.png",
        "avatars/wolf/1.png",
        "avatars/Any/1.png",
        "avatars/Big Dog/1.png",
        "avatars/any/1.gif",
        "avatars/any/1.PNG",
        "avatars/any/1.jpg",
        "avatars/any/1",
        "avatars/any/.png",
        "avatars/any/x.png",
        "avatars/any/-1.png",
        "avatars/any/1.0.png",
        "avatars/any/%EF%BC%91.png",
        "avatars/any/1.png/",
        "avatars/any",
    ],
)
async def test_nothing_there(client: httpx.AsyncClient, stand: Stand, path: str) -> None:
    """Unknown models, revisions, classes and files are 404 problems that no cache keeps."""
    for method in ("GET", "HEAD"):
        response = await client.request(method, f"/v1/images/{path}")
        assert response.status_code == 404
        assert response.headers["cache-control"] == "no-store"
        assert "etag" not in response.headers
    assert stand.engine.submissions == []


@pytest.mark.parametrize(
    ("file", "loc", "code"),
    [
        (f"{MAX_SEED + 1}.png", ["path", "seed"], "seed_out_of_range"),
        ("1.png?steps=0", ["query", "steps"], "steps_out_of_range"),
        ("1.png?steps=41", ["query", "steps"], "steps_out_of_range"),
        ("1.png?steps=1.0", ["query", "steps"], "int_parsing"),
        ("1.png?steps=", ["query", "steps"], "int_parsing"),
        ("1.png?steps=%D9%A1", ["query", "steps"], "int_parsing"),
        ("1.png?steps=+1", ["query", "steps"], "int_parsing"),
        ("1.png?steps=1&steps=1", ["query", "steps"], "repeated_parameter"),
        ("1.png?steps=1&timesteps=0", ["query", "timesteps"], "conflict"),
        ("1.png?timesteps=0,22", ["query", "timesteps"], "timesteps_not_descending"),
        ("1.png?timesteps=40", ["query", "timesteps"], "timesteps_out_of_range"),
        ("1.png?timesteps=22,", ["query", "timesteps"], "int_parsing"),
        ("1.png?timesteps=[22,0]", ["query", "timesteps"], "int_parsing"),
        ("1.png?quality=50", ["query", "quality"], "quality_of_lossless"),
        ("1.jpeg?quality=0", ["query", "quality"], "quality_out_of_range"),
        ("1.webp?quality=101", ["query", "quality"], "quality_out_of_range"),
        ("1.png?num_inference_steps=2", ["query", "num_inference_steps"], "unknown_parameter"),
        ("1.png?v=1", ["query", "v"], "unknown_parameter"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, stand: Stand, file: str, loc: list[str], code: str) -> None:
    """What is understood but not valid is 422, with its place."""
    response = await client.get(f"/v1/images/avatars/any/{file}")
    assert response.status_code == 422
    assert [(loc, code)] == [(error["loc"], error["code"]) for error in response.json()["errors"]]
    assert stand.engine.submissions == []


async def test_the_largest_seed(client: httpx.AsyncClient) -> None:
    """The end of the range is inside it."""
    assert (await client.get(f"/v1/images/avatars/any/{MAX_SEED}.png")).status_code == 200


async def test_unconditional_model(make_stand: MakeStand) -> None:
    """A model without classes has images under `any` alone."""
    stand = make_stand(model_info("plain", classes=None))
    async with stand.client() as client:
        response = await client.get("/v1/images/plain/any/1.png")
        assert response.status_code == 200
        assert "x-class-label" not in response.headers
        assert (await client.get("/v1/images/plain/0/1.png")).status_code == 404


async def test_accept_is_of_no_account(client: httpx.AsyncClient) -> None:
    """The extension says the format."""
    response = await client.get(URL, headers={"accept": "application/json"})
    assert response.headers["content-type"] == "image/png"


async def test_not_ready_yet(stand: Stand) -> None:
    """Before the model was ready once, its numerics and so its ETag are unknown: 503, also for HEAD."""
    stand.engine.fingerprint = None
    async with stand.client() as client:
        for method in ("GET", "HEAD"):
            response = await client.request(method, URL, headers={"if-none-match": "*"})
            assert response.status_code == 503
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["retry-after"] == "5"
        assert (await client.get(URL)).json()["type"].endswith("/not-ready")


async def test_the_cache_spares_the_model(stand: Stand) -> None:
    """A second GET is a hit: same bytes, no work, and the metrics say so."""
    async with stand.client() as client:
        first, second = await client.get(URL), await client.get(URL)
        await client.get(URL, headers={"if-none-match": first.headers["etag"]})
    assert first.content == second.content
    assert second.headers["server-timing"].startswith("cache;desc=hit")
    assert len(stand.engine.submissions) == 1
    for result in ("miss", "hit", "not_modified"):
        assert stand.counted("response_cache_requests_total", result=result) == 1
    assert stand.counted("requests_total", route="images", outcome="ok") == 3


async def test_the_cache_can_be_off(make_stand: MakeStand) -> None:
    """`response_cache_bytes` 0 keeps nothing; the images stay the same."""
    stand = make_stand(response_cache_bytes=0)
    async with stand.client() as client:
        assert (await client.get(URL)).content == (await client.get(URL)).content
    assert len(stand.engine.submissions) == 2


async def test_concurrent_gets_run_once(stand: Stand) -> None:
    """Identical GETs that overlap share one run; another image does not."""
    stand.engine.gate.clear()
    async with stand.client() as client:
        waiting = [asyncio.ensure_future(client.get(URL)) for _ in range(8)]
        waiting.append(asyncio.ensure_future(client.get(URL.replace("42", "43"))))
        await stand.engine.submitted(2)
        await asyncio.sleep(0.05)
        assert len(stand.engine.submissions) == 2
        stand.engine.gate.set()
        *same, other = await asyncio.gather(*waiting)
    assert len({response.content for response in same}) == 1
    assert other.content != same[0].content
    assert stand.counted("response_cache_requests_total", result="joined") == 7
    assert stand.counted("response_cache_requests_total", result="miss") == 2


@pytest.mark.parametrize(("error", "status"), [(EngineLost("It died."), 503), (KeyError("x"), 500)])
async def test_errors_are_not_cached(stand: Stand, error: Exception, status: int) -> None:
    """A failure reaches everyone who waits for it, and nobody after them."""
    stand.engine.gate.clear()
    stand.engine.error = error
    async with stand.client() as client:
        waiting = [asyncio.ensure_future(client.get(URL)) for _ in range(3)]
        await stand.engine.submitted(1)
        await asyncio.sleep(0.05)
        stand.engine.gate.set()
        for response in await asyncio.gather(*waiting):
            assert response.status_code == status
            assert response.headers["cache-control"] == "no-store"
            assert "etag" not in response.headers
        assert len(stand.engine.submissions) == 1
        stand.engine.error = None
        assert (await client.get(URL)).status_code == 200


async def test_a_refusal_is_passed_on(stand: Stand) -> None:
    """Overload is 503 with Retry-After, and the next GET tries again."""
    stand.engine.refusal = Overloaded("Too much to do.", retry_after=2.2)
    async with stand.client() as client:
        response = await client.get(URL)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "3"
        stand.engine.refusal = None
        assert (await client.get(URL)).status_code == 200
    assert stand.counted("requests_total", route="images", outcome="rejected") == 1


async def test_deadline(make_stand: MakeStand) -> None:
    """An image that takes longer than `request_timeout` is 504, and its run is cancelled."""
    stand = make_stand(request_timeout=0.1)
    stand.engine.gate.clear()
    async with stand.client() as client:
        assert (await client.get(URL)).status_code == 504
        assert (await client.post("/v1/generate", json={})).status_code == 504
    assert all(submission.cancelled for submission in stand.engine.submissions)
    assert stand.counted("requests_total", route="images", outcome="expired") == 1
    assert stand.counted("requests_total", route="generate", outcome="expired") == 1


@pytest.mark.parametrize(
    ("query", "body", "field"),
    [
        ("", {}, "num_inference_steps"),
        ("?steps=3", {"steps": 3}, "steps"),
        ("?timesteps=9,0", {"timesteps": [9, 0]}, "timesteps"),
    ],
)
async def test_what_no_deadline_allows_names_the_field(
    stand: Stand, query: str, body: dict[str, Any], field: str
) -> None:
    """Without a `timeout` it is the number of steps, for `request_timeout` is not the client's."""
    stand.engine.refusal = OutOfReach("", seconds=301)
    async with stand.client() as client:
        image, posted = await client.get(URL + query), await client.post("/v1/generate", json=body)
        timed = await client.post("/v1/generate", json={**body, "timeout": 300})
    found = [(each.status_code, error["loc"], error["code"]) for each in (image, posted, timed)
             for error in each.json()["errors"]]  # fmt: skip
    assert found == [
        (422, ["query", field.removeprefix("num_inference_")], "takes_too_long"),
        (422, ["body", field], "takes_too_long"),
        (422, ["body", "timeout"], "timeout_too_short"),
    ]


async def test_a_deadline_that_passed_before_the_engine_was_asked_is_504(stand: Stand) -> None:
    """The request had time enough, and the field nothing wrong: its body came slowly."""
    stand.engine.refusal = OutOfReach("late", seconds=1.5)
    async with stand.client() as client:
        assert (await client.get(URL)).status_code == 504
        assert (await client.post("/v1/generate", json={"timeout": 2})).status_code == 504
    assert stand.counted("requests_total", route="generate", outcome="expired") == 1


async def test_new_numerics_while_it_ran(stand: Stand) -> None:
    """An engine replaced by one with other numerics gives the image another ETag, under which it is kept."""
    async with stand.client() as client:
        before = (await client.head(URL)).headers["etag"]
        stand.engine.gate.clear()
        waiting = asyncio.ensure_future(client.get(URL))
        await stand.engine.submitted(1)
        stand.engine.fingerprint = "numerics-2"
        stand.engine.gate.set()
        after = (await waiting).headers["etag"]
        assert after != before
        again = await client.get(URL)
    assert again.headers["etag"] == after
    assert again.headers["server-timing"].startswith("cache;desc=hit")


SEGMENT = st.text(st.characters(exclude_characters="/?#", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(
    model=st.sampled_from(["avatars", f"avatars@{HEX}"]) | SEGMENT,
    label=st.sampled_from(["any", "cat", "1"]) | SEGMENT,
    file=st.sampled_from(["1.png", "2.webp"]) | SEGMENT,
    query=st.dictionaries(
        st.sampled_from(["steps", "timesteps", "quality"]) | st.text(max_size=4),
        st.integers().map(str) | st.text(max_size=8),
        max_size=2,
    ),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_url_is_answered(stand: Stand, model: str, label: str, file: str, query: dict[str, str]) -> None:
    """Any URL of this shape gives an image or a problem, never a 500."""

    async def get() -> httpx.Response:
        async with stand.client() as client:
            path = "/".join(quote(part, safe="@:") for part in (model, label, file))
            return await client.get(f"/v1/images/{path}", params=query)

    response = asyncio.run(get())
    assert response.status_code in (200, 404, 422)

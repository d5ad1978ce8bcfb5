"""The page itself: reachable by everyone, under every address, and plain about trouble."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator

import httpx
import psutil
import pytest
from playwright.sync_api import expect

from tests.api.sse import open_stream
from tests.browser.conftest import OpenPage
from tests.browser.driving import go, idle, open_tab, set_range
from tests.conftest import Server, StartServer
from tests.load import engine_process

pytestmark = pytest.mark.slow

TABS = ("create", "compare", "seeds", "edit", "morph")
REFUSED = "Failed to load resource"  # what Chromium itself says of every refusal


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_tab(small_server: Server, open_page: OpenPage, axe: str, scheme: str) -> None:
    page = open_page(small_server.url, color_scheme=scheme)
    page.evaluate(axe)
    for tab in TABS:
        open_tab(page, tab)
        found = page.evaluate("async () => (await axe.run()).violations.map((v) => [v.impact, v.id, v.nodes[0].html])")
        assert [one for one in found if one[0] in ("serious", "critical")] == []


def test_axe_finds_nothing_serious_in_a_notice(small_server: Server, open_page: OpenPage, axe: str) -> None:
    page = open_page(small_server.url)
    page.evaluate(axe)
    idle(page)
    page.fill("#seed", "-1")
    page.click("#go")
    expect(page.locator("#notice")).to_contain_text("A seed is a whole number")
    expect(page.locator("#seed")).to_be_focused()
    found = page.evaluate("async () => (await axe.run()).violations.map((v) => [v.impact, v.id])")
    assert [one for one in found if one[0] in ("serious", "critical")] == []


def test_tabs_and_forms_work_by_keys_alone(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url)
    idle(page)
    page.locator("#tab-create").focus()
    for key, tab in (("ArrowRight", "compare"), ("End", "morph"), ("ArrowRight", "create")):
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{tab}")).to_be_focused()
        expect(page.locator(f"#tab-{tab}")).to_have_attribute("aria-selected", "true")
        expect(page.locator(f"#panel-{tab}")).to_be_visible()
        idle(page)
    page.locator("#seed").focus()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("9")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("4 pictures, seeds 9 to 12, 2 steps.")


def test_what_was_asked_for_comes_into_view(small_server: Server, open_page: OpenPage) -> None:
    """On a phone the button stands below the pictures; it stays at hand, and pressing it shows them."""
    page = open_page(small_server.url)
    idle(page)
    expect(page.locator("#go")).to_be_in_viewport()
    page.locator("#snippet").scroll_into_view_if_needed()
    page.locator("#go").press("Enter")
    expect(page.locator("#create-tiles li").first).to_be_in_viewport()
    idle(page)


def test_it_works_below_a_prefix(start_server: StartServer, model_folder: object, open_page: OpenPage) -> None:
    server = start_server("--model", str(model_folder), "--root-path", "/a/b")
    page = open_page(server.url, "/a/b")
    assert page.evaluate("location.pathname") == "/a/b/"
    expect(page.locator("#create-tiles .done")).to_have_count(4)
    assert f"{server.url}/a/b/v1/generate" in page.inner_text("#snippet")
    open_tab(page, "compare")
    expect(page.locator("#compare-tiles .done")).to_have_count(3)


def test_it_asks_for_a_key_and_then_sends_it(
    start_server: StartServer, model_folder: object, open_page: OpenPage
) -> None:
    server = start_server("--model", str(model_folder), env={"ONESTEP_API_KEYS": "right"})
    page = open_page(server.url, console_may_say=REFUSED)
    for key in ("wrong", "right"):
        expect(page.locator("#key-dialog")).to_be_visible()
        page.fill("#key", key)
        page.keyboard.press("Enter")
    expect(page.locator("#create-tiles .done")).to_have_count(4)
    assert "$ONESTEP_API_KEY" in page.inner_text("#snippet")
    assert "right" not in page.inner_text("#snippet")
    open_tab(page, "compare")
    expect(page.locator("#compare-tiles .done")).to_have_count(3)
    expect(page.locator("#live")).to_contain_text("waiting")


def test_with_the_metrics_elsewhere_it_does_not_ask_for_them(
    start_server: StartServer, model_folder: object, open_page: OpenPage
) -> None:
    server = start_server("--model", str(model_folder), "--metrics-port", "0")
    page = open_page(server.url)
    expect(page.locator("#create-tiles .done")).to_have_count(4)
    assert page.inner_text("#live").strip() == ""


def test_offline_is_told_and_the_work_goes_on_by_itself_afterwards(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url, console_may_say=REFUSED)
    idle(page)
    page.context.set_offline(True)
    page.click("#go")
    expect(page.locator("#notice")).to_contain_text("You are offline.")
    expect(page.locator("#notice button")).to_have_text("Try now")
    page.context.set_offline(False)
    expect(page.locator("#notice")).to_be_hidden()
    expect(page.locator("#create-tiles .done")).to_have_count(4)


def test_a_server_that_is_not_ready_is_waited_for(
    start_server: StartServer, model_folder: object, open_page: OpenPage
) -> None:
    server = start_server("--model", str(model_folder), ready=False)
    while True:
        try:
            assert httpx.get(f"{server.url}/livez", trust_env=False).status_code == 200
            break
        except httpx.TransportError:
            assert server.process.poll() is None
    page = open_page(server.url, console_may_say=REFUSED)
    expect(page.locator("#notice")).to_contain_text("The server is still getting ready. Trying again in")
    expect(page.locator("#create-tiles .done")).to_have_count(4)
    expect(page.locator("#notice")).to_be_hidden()


@contextlib.contextmanager
def occupied(server: Server) -> Iterator[None]:
    """640 image-steps are outstanding: the engine stands still until the block ends, and then does them."""
    engine = engine_process(server)
    engine.send_signal(signal.SIGSTOP)
    with open_stream(server.url, batch_size=16, num_inference_steps=40, callback_steps=40) as (response, events):
        assert response.status_code == 200
        next(events)
        yield
        with contextlib.suppress(psutil.NoSuchProcess):  # replaced, if this took long
            engine.send_signal(signal.SIGCONT)
        list(events)


def test_more_than_ones_share_is_told_as_that(
    start_server: StartServer, model_folder: object, open_page: OpenPage
) -> None:
    server = start_server("--model", str(model_folder), "--max-client-image-steps", "700")
    page = open_page(server.url, console_may_say=REFUSED)
    idle(page)
    set_range(page, "batch", 16)
    set_range(page, "steps", 8)
    with occupied(server):
        page.click("#go")
        expect(page.locator("#notice")).to_have_text(
            re.compile("as many pictures .* Trying again in [0-9]+ s.*Try now")
        )
    expect(page.locator("#create-tiles .done")).to_have_count(16)


def test_a_busy_server_is_told_as_that(start_server: StartServer, model_folder: object, open_page: OpenPage) -> None:
    server = start_server("--model", str(model_folder), "--max-queue-time", "0.001")
    page = open_page(server.url, console_may_say=REFUSED)
    idle(page)
    set_range(page, "batch", 16)
    set_range(page, "steps", 8)
    with occupied(server):
        page.click("#go")
        expect(page.locator("#notice")).to_contain_text("The server is busy")
    expect(page.locator("#create-tiles .done")).to_have_count(16)


def test_a_request_that_kills_engines_is_not_sent_again_by_itself(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url, console_may_say=REFUSED)
    idle(page)
    problem = {"type": "urn:onestep:problems/engine-lost", "title": "Engine lost", "status": 503}
    page.route("**/v1/generate", lambda route: route.fulfill(status=503, json=problem))
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.click("#go")
    expect(page.locator("#notice")).to_contain_text("broke down")
    page.wait_for_timeout(2500)  # longer than it waits before another attempt
    assert sum(url.endswith("/v1/generate") for url in sent) == 1
    assert page.inner_text("#status") == ""


def test_stop_says_so_and_leaves_the_keyboard_where_it_goes_on(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url)
    idle(page)
    page.route("**/v1/generate", lambda route: None)
    page.click("#go")
    page.click("#stop")
    assert page.inner_text("#status") == "Stopped."
    expect(page.locator("#go")).to_be_focused()


def test_stop_cancels_on_the_server_too(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url)
    idle(page)
    page.evaluate("document.getElementById('steps').max = 40")
    set_range(page, "batch", 16)
    set_range(page, "steps", 40)
    page.click("#go")
    expect(page.locator("#create-tiles .preview").first).to_be_visible()
    page.click("#stop")
    idle(page)
    expect(page.locator("#live")).to_contain_text(" 0 pictures waiting")
    assert page.locator("#create-tiles .done").count() == 0
    set_range(page, "steps", 1)
    go(page)
    expect(page.locator("#create-tiles .done")).to_have_count(16)

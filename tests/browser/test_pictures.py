"""The page's pictures, made and shown on a real server."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.driving import go, idle, open_tab, pixels, run_curl, set_range, shown
from tests.conftest import Server

pytestmark = pytest.mark.slow


def got(server: Server, path: str) -> np.ndarray:
    answer = httpx.get(f"{server.url}/v1/images/tiny/{path}", trust_env=False, timeout=60)
    assert answer.status_code == 200
    return pixels(answer.content)


def test_pictures_appear_at_once_and_each_is_the_one_of_its_seed(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url)
    expect(page.locator("#create-tiles .done")).to_have_count(4)
    page.fill("#seed", "100")
    page.select_option("#class", "fox")
    set_range(page, "batch", 9)
    set_range(page, "steps", 3)
    go(page)
    tiles = page.locator("#create-tiles li")
    expect(tiles).to_have_count(9)
    expect(tiles.nth(4)).to_contain_text("fox · 104")
    assert np.array_equal(shown(page, "#create-tiles li:nth-child(5) img"), got(small_server, "fox/104.png?steps=3"))
    expect(page.locator("#status")).to_have_text("9 pictures, seeds 100 to 108, 3 steps.")


def test_a_picture_sharpens_while_its_steps_stream_in(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url)
    idle(page)
    page.evaluate("""() => {
      window.told = [];
      new MutationObserver((changes) => {
        for (const { target } of changes) if (target.alt) window.told.push(target.alt);
      }).observe(document.getElementById("create-tiles"), { subtree: true, childList: true, attributeFilter: ["alt"] });
    }""")
    set_range(page, "batch", 1)
    set_range(page, "steps", 8)
    go(page)
    told = page.evaluate("window.told")
    assert told[-1] == f"{told[-1].split(',')[0]}, seed 42"
    steps = [int(re.fullmatch(r"Step (\d) of 8", one).group(1)) for one in told[:-1]]  # type: ignore[union-attr]
    assert steps
    assert steps == sorted(set(steps))


def test_one_two_and_four_steps_of_a_seed_stand_side_by_side(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url, "/#compare")
    expect(page.locator("#compare-tiles .done")).to_have_count(3)
    page.fill("#seed", "7")
    go(page)
    for place, steps in enumerate((1, 2, 4), 1):
        picture = shown(page, f"#compare-tiles li:nth-child({place}) img")
        assert np.array_equal(picture, got(small_server, f"any/7.png?steps={steps}"))


def test_what_is_said_of_a_picture_is_what_was_asked_for(small_server: Server, open_page: OpenPage) -> None:
    """Not what the form says by the time it comes."""
    page = open_page(small_server.url, "/#compare")
    idle(page)
    held: list[Route] = []
    page.route("**/v1/images/**", lambda route: held.append(route))
    page.fill("#seed", "5")
    with page.expect_request("**/5.png?steps=4"):
        page.click("#go")
    page.fill("#seed", "777")
    for route in held:
        route.continue_()
    idle(page)
    expect(page.locator("#compare-tiles img").first).to_have_attribute("alt", "Seed 5 after one step")
    assert page.inner_text("#status") == "Seed 5 after one, two and four steps."


def test_each_picture_that_the_browser_kept_is_told_as_that(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url, "/#compare")
    idle(page)
    go(page)
    for caption in page.locator("#compare-tiles figcaption").all():
        expect(caption).to_contain_text("from your browser")


def test_what_the_server_remembered_is_not_called_made(small_server: Server, open_page: OpenPage) -> None:
    for steps in (1, 2, 4):
        got(small_server, f"any/4711.png?steps={steps}")
    page = open_page(small_server.url, "/#compare")
    idle(page)
    page.fill("#seed", "4711")
    go(page)
    expect(page.locator("#compare-tiles figcaption").last).to_have_text("4 steps from the server's cache")


def test_the_seed_slider_comes_back_from_the_browsers_cache(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url, "/#seeds")
    caption = page.locator("#seeds-caption")
    expect(caption).to_contain_text("Seed 42, from the server")
    page.locator("#seeds-slider").focus()
    for seed in (43, 44):
        page.keyboard.press("ArrowRight")
        expect(caption).to_contain_text(f"Seed {seed}, from the server")
    assert np.array_equal(shown(page, "#seeds-picture img"), got(small_server, "any/44.png?steps=1"))
    page.keyboard.press("ArrowLeft")
    expect(caption).to_contain_text("Seed 43, from your browser's cache")


def test_dragging_the_slider_ends_at_the_seed_where_it_was_let_go(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url, "/#seeds")
    expect(page.locator("#seeds-caption")).to_contain_text("Seed 42")
    box = page.locator("#seeds-slider").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 20, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, middle, steps=40)
    page.mouse.up()
    idle(page)
    seed = page.locator("#seeds-slider").input_value()
    assert int(seed) > 200
    expect(page.locator("#seeds-caption")).to_contain_text(f"Seed {seed}, from")


def test_a_morph_begins_and_ends_at_its_seeds_and_can_be_played(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url, "/#morph")
    idle(page)
    page.select_option("#class", "elk")
    page.fill("#seed", "1")
    page.fill("#seed-to", "2")
    set_range(page, "frames", 5)
    set_range(page, "steps", 1)
    go(page)
    expect(page.locator("#morph-strip .done")).to_have_count(5)
    assert np.array_equal(shown(page, "#morph-strip li:first-child img"), got(small_server, "elk/1.png?steps=1"))
    assert np.array_equal(shown(page, "#morph-strip li:last-child img"), got(small_server, "elk/2.png?steps=1"))
    set_range(page, "morph-slider", 3)
    expect(page.locator("#morph-caption")).to_have_text("Frame 4 of 5")
    page.click("#morph-strip li:nth-child(2)")
    expect(page.locator("#morph-caption")).to_have_text("Frame 2 of 5")
    set_range(page, "morph-slider", 3)
    page.click("#morph-play")
    expect(page.locator("#morph-caption")).to_have_text("Frame 2 of 5")
    expect(page.locator("#morph-play")).to_have_text("Pause")
    page.click("#morph-play")
    expect(page.locator("#morph-play")).to_have_text("Play")


def test_times_and_throughput_are_told(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url)
    idle(page)
    for name in ("queue", "inference", "total", "browser"):
        expect(page.locator(f'[data-time="{name}"]')).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    set_range(page, "batch", 16)
    go(page)
    expect(page.locator("#live")).to_have_text(
        re.compile(r"[\d.]+ pictures/s · [\d.]+ steps/s · \d+ pictures? waiting")
    )


def test_the_curl_commands_on_screen_make_what_is_on_screen(
    small_server: Server, open_page: OpenPage, tmp_path: Path
) -> None:
    page = open_page(small_server.url)
    page.select_option("#class", "hen")
    set_range(page, "batch", 1)
    go(page)
    run_curl(page, tmp_path)
    assert np.array_equal(pixels(tmp_path / "onestep.png"), shown(page, "#create-tiles img"))
    open_tab(page, "compare")
    run_curl(page, tmp_path)
    found = sorted(tmp_path.glob("hen-42-steps*.png"))
    assert len(found) == 3
    for place, file in enumerate(found, 1):
        assert np.array_equal(pixels(file), shown(page, f"#compare-tiles li:nth-child({place}) img"))

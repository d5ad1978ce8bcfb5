"""Edits of pictures on the page."""

from __future__ import annotations

import base64
import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.driving import go, idle, open_tab, pixels, run_curl, save_sent_files, set_range, shown
from tests.conftest import Server

pytestmark = pytest.mark.slow

LUMA = np.array([0.2989, 0.5870, 0.1140])

DROP = """([name, type, base64, id]) => {
  const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  const drop = document.getElementById(id);
  drop.dispatchEvent(new DragEvent("dragover", { dataTransfer: data, bubbles: true, cancelable: true }));
  drop.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@contextlib.contextmanager
def picture_changes(page: Page) -> Iterator[None]:
    """Waits until another picture is there to edit."""
    old = page.evaluate("document.getElementById('before').toDataURL()")
    yield
    page.wait_for_function("(old) => document.getElementById('before').toDataURL() !== old", arg=old)


def drop(page: Page, photo: bytes, place: str) -> None:
    """Drops a file on an element and waits until it is the picture to edit."""
    with picture_changes(page):
        page.evaluate(DROP, ["photo.jpg", "image/jpeg", base64.b64encode(photo).decode(), place])


@pytest.fixture
def photo() -> bytes:
    """A wide JPEG with smooth colours."""
    across, down = np.meshgrid(np.linspace(0, 1, 96), np.linspace(0, 1, 64))
    colours = np.stack([across, down, 1 - across * down], axis=-1) * 255
    file = io.BytesIO()
    Image.fromarray(colours.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def open_editor(open_page: OpenPage, server: Server, kind: str) -> Page:
    """The edit tab, with a picture of the server's own and few steps."""
    page = open_page(server.url, "/#edit")
    expect(page.locator("#class")).not_to_have_value("any")  # the picture is there, and its class is chosen
    idle(page)
    page.select_option("#edit-kind", kind)
    set_range(page, "steps", 6)
    return page


COUNT_ADDRESSES = """() => {
  const [create, revoke] = [URL.createObjectURL.bind(URL), URL.revokeObjectURL.bind(URL)];
  window.addresses = new Set();
  URL.createObjectURL = (blob) => { const url = create(blob); addresses.add(url); return url; };
  URL.revokeObjectURL = (url) => { addresses.delete(url); revoke(url); };
}"""


def test_each_edit_begins_with_steps_that_suit_it(small_server: Server, open_page: OpenPage) -> None:
    page = open_editor(open_page, small_server, "inpaint")
    for kind, begin, most in (("stroke", "4", "8"), ("colorize", "40", "40"), ("inpaint", "6", "40")):
        page.select_option("#edit-kind", kind)
        expect(page.locator("#steps")).to_have_value(begin)
        expect(page.locator("#steps")).to_have_attribute("max", most)


def test_only_what_was_painted_over_is_made_anew(small_server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_editor(open_page, small_server, "inpaint")
    page.click("[data-mask=none]")
    page.locator("#before").scroll_into_view_if_needed()
    box = page.locator("#before").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.2, steps=8)
    page.mouse.up()
    go(page)
    save_sent_files(page, tmp_path)
    before, after = pixels(tmp_path / "image.png"), shown(page, "#after img")
    changed = (before != after).any(axis=-1)
    assert changed[4:9, 6:26].mean() > 0.9  # the brush is five of the model's pixels wide
    assert not changed[12:].any()


def test_the_mask_can_be_painted_with_keys_alone(small_server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_editor(open_page, small_server, "inpaint")
    page.click("[data-mask=none]")
    page.locator("#before").focus()
    for key in ("ArrowUp", "ArrowUp", "Space", "ArrowLeft", "Space"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")  # does nothing here
    go(page)
    save_sent_files(page, tmp_path)
    mask = pixels(tmp_path / "mask.png")[..., 0] >= 128
    assert mask[88, 128]
    assert mask[88, 108]
    assert 0.01 < mask.mean() < 0.05
    assert not mask[128:].any()


def test_an_empty_mask_is_explained_and_nothing_is_sent(small_server: Server, open_page: OpenPage) -> None:
    page = open_editor(open_page, small_server, "inpaint")
    page.click("[data-mask=none]")
    page.click("#go")
    expect(page.locator("#notice")).to_have_text("Paint over a part of the picture first.")


def test_a_dropped_picture_is_coloured_and_keeps_its_luma(
    small_server: Server, open_page: OpenPage, tmp_path: Path, photo: bytes
) -> None:
    page = open_editor(open_page, small_server, "colorize")
    drop(page, photo, "drop")
    go(page)
    save_sent_files(page, tmp_path)
    sent = pixels(tmp_path / "image.png")
    assert sent.shape == (64, 64, 3)  # the middle square
    with Image.open(tmp_path / "image.png") as image:
        known = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS))
    after = shown(page, "#after img")
    assert np.abs(after @ LUMA - known @ LUMA).max() < 4
    assert np.abs(after.astype(int) - known).max() > 16


def test_a_picture_may_be_dropped_anywhere(small_server: Server, open_page: OpenPage, photo: bytes) -> None:
    """The browser does not leave the page for it, whichever tab is open."""
    page = open_page(small_server.url)
    idle(page)
    drop(page, photo, "snippet")
    expect(page.locator("#panel-edit")).to_be_visible()
    idle(page)
    assert page.evaluate("""() => {
      const data = new DataTransfer();
      data.items.add(new File(["x"], "a.png", { type: "image/png" }));
      return ["dragover", "drop"].map((name) => !document.body.dispatchEvent(
        new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true })));
    }""") == [True, True]
    expect(page.locator("#notice")).to_contain_text("not a picture")


def test_an_opened_picture_is_enlarged_from_its_blocks(
    small_server: Server, open_page: OpenPage, tmp_path: Path, photo: bytes
) -> None:
    page = open_editor(open_page, small_server, "super-resolution")
    with picture_changes(page):
        page.set_input_files("#file", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo})
    go(page)
    save_sent_files(page, tmp_path)
    with Image.open(tmp_path / "image.png") as image:
        known = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)).astype(float)
    after = shown(page, "#after img").astype(float)
    blocks = [one.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)) for one in (known, after)]
    assert np.abs(blocks[0] - blocks[1]).max() < 4
    assert np.abs(known - after).max() > 16


def test_a_picture_is_redrawn_and_edited_further(small_server: Server, open_page: OpenPage) -> None:
    page = open_editor(open_page, small_server, "stroke")
    set_range(page, "steps", 2)
    go(page)
    first = shown(page, "#after img")
    page.click("#after-caption button")
    expect(page.locator("#after img")).to_have_count(0)
    go(page)
    assert not np.array_equal(shown(page, "#after img"), first)


def test_a_persons_own_picture_stays_whatever_was_under_way(
    small_server: Server, open_page: OpenPage, photo: bytes
) -> None:
    """A sample that comes later, and an edit of the picture before, are given up."""
    page = open_page(small_server.url)
    idle(page)
    held: list[Route] = []
    for path in ("**/v1/images/**", "**/v1/edits/**"):
        page.route(path, lambda route: held.append(route))
    with page.expect_request("**/v1/images/**"):
        page.click("#tab-edit")
    opened = {"name": "a.png", "mimeType": "image/png", "buffer": photo}
    for _ in range(2):
        page.set_input_files("#file", opened)
        idle(page)
        before = page.locator("#before").screenshot()
        for route in held:
            route.continue_()
        held.clear()
        page.wait_for_timeout(500)
        assert page.locator("#before").screenshot() == before
        assert page.locator("#after img").count() == 0
        with page.expect_request("**/v1/edits/**"):
            page.click("#go")


def test_saving_leaves_no_addresses_behind(small_server: Server, open_page: OpenPage) -> None:
    """Each would keep its picture until the page is closed."""
    page = open_page(small_server.url, "/#edit")
    idle(page)
    page.evaluate(COUNT_ADDRESSES)
    for _ in range(3):
        go(page)
        page.select_option("#language", "python")
        page.select_option("#language", "curl")
    assert page.evaluate("addresses.size") == page.locator("#files a").count()


def test_a_file_that_is_no_picture_is_refused_in_words(small_server: Server, open_page: OpenPage) -> None:
    page = open_editor(open_page, small_server, "colorize")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.locator("#notice")).to_contain_text("not a picture")


def test_a_made_picture_goes_to_the_editor(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url)
    idle(page)
    page.select_option("#class", "gnu")
    go(page)
    page.click("#create-tiles li:nth-child(2) button")
    expect(page.locator("#panel-edit")).to_be_visible()
    expect(page.locator("#before")).to_be_focused()
    expect(page.locator("#class")).to_have_value("gnu")


def test_the_code_of_an_edit_makes_what_is_on_screen(small_server: Server, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_editor(open_page, small_server, "inpaint")
    go(page)
    save_sent_files(page, tmp_path)
    run_curl(page, tmp_path)
    after = shown(page, "#after img")
    assert np.array_equal(pixels(tmp_path / "onestep.png"), after)
    (tmp_path / "onestep.png").unlink()
    page.select_option("#language", "python")
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    program = page.evaluate("navigator.clipboard.readText()")
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, env={"NO_PROXY": "127.0.0.1"}, timeout=120
    )
    assert np.array_equal(pixels(tmp_path / "onestep.png"), after)


def test_javascript_on_screen_makes_what_is_on_screen(small_server: Server, open_page: OpenPage) -> None:
    page = open_page(small_server.url)
    set_range(page, "batch", 1)
    go(page)
    page.select_option("#language", "javascript")
    page.evaluate(f"async () => {{ {page.inner_text('#snippet')}\npicture.id = 'made'; await picture.decode(); }}")
    assert np.array_equal(shown(page, "#made"), shown(page, "#create-tiles img"))
    open_tab(page, "seeds")

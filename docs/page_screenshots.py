"""Makes the README's two pictures of the page, with the bundled model: `python -m docs.page_screenshots`.

Needs Debian's `chromium`, as the browser tests do.
"""

from __future__ import annotations

from pathlib import Path

import httpx
from playwright.sync_api import Browser, expect, sync_playwright

from benchmarks.serving import Service
from tests.browser.conftest import CHROMIUM, FLAGS, PATIENCE
from tests.browser.driving import go, idle, set_range

OUT = Path(__file__).parent / "images"


def repaint(browser: Browser, url: str) -> None:
    """A picture of the server's own, a stroke across it, and what becomes of it."""
    picture = httpx.get(f"{url}/v1/images/avatars-32/personas/7.png?steps=4", timeout=60).raise_for_status().content
    page = browser.new_page(viewport={"width": 1040, "height": 760})
    page.goto(f"{url}/#edit")
    expect(page.locator("#class")).not_to_have_value("any")
    idle(page)
    page.set_input_files("#file", {"name": "persona.png", "mimeType": "image/png", "buffer": picture})
    page.select_option("#class", label="personas")
    page.fill("#seed", "7")
    page.click("[data-mask=none]")
    set_range(page, "brush", 70)
    box = page.locator("#before").bounding_box()
    assert box is not None
    for across, act in ((0.25, page.mouse.down), (0.75, page.mouse.up)):
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * 0.25, steps=8)
        act()
    go(page)
    page.screenshot(path=OUT / "page-desktop.png")


def create(browser: Browser, url: str) -> None:
    """Four pictures of four classes."""
    page = browser.new_page(viewport={"width": 375, "height": 780}, color_scheme="dark")
    page.goto(f"{url}/#create")
    idle(page)
    page.fill("#seed", "21")
    set_range(page, "batch", 4)
    set_range(page, "steps", 4)
    go(page)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=OUT / "page-phone.png")


def main() -> None:
    """Serves the bundled model, opens the page twice, and writes what it shows."""
    expect.set_options(timeout=PATIENCE)
    with Service("--model", "bundled") as service, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        repaint(browser, service.url)
        create(browser, service.url)
        browser.close()


if __name__ == "__main__":
    main()

"""A real browser on a real server: Debian's Chromium, at the width of a phone and of a desk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import Server, StartServer
from tests.tiny import tiny_model

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"phone": (375, 812), "desktop": (1280, 900)}
NAMES = ["ape", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]
CLASSES = {str(index): name for index, name in enumerate(NAMES)}
PATIENCE = 60_000  # milliseconds that a busy machine may take


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One Chromium, with an empty profile of its own, until the last browser test.

    No longer: while Playwright's synchronous client lives, an event loop counts as running in this thread, and the
    asynchronous tests of other folders could not start theirs.
    """
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of 32 by 32 pixels with named classes."""
    return tiny_model(tmp_path_factory.mktemp("page") / "tiny", "plain", sample_size=32, labels=CLASSES)


@pytest.fixture(scope="session")
def small_server(start_server: StartServer, model_folder: Path) -> Server:
    """A ready server of that model, shared."""
    return start_server("--model", str(model_folder))


@pytest.fixture(params=list(SIZES))
def size(request: pytest.FixtureRequest) -> str:
    """`phone` or `desktop`."""
    name: str = request.param
    return name


class Watched:
    """A browser page, and what it did that it should not."""

    def __init__(self, page: Page, origin: str, console_may_say: str) -> None:
        self.page = page
        self.origin = origin
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.on("console", lambda said: self._console(said.type, said.text, console_may_say))
        page.on("request", lambda request: self._request(request.url))

    def _console(self, kind: str, text: str, allowed: str) -> None:
        if kind in ("error", "warning") and not (allowed and allowed in text):
            self.faults.append(f"{kind} on the console: {text}")

    def _request(self, url: str) -> None:
        if not url.startswith((f"{self.origin}/", f"blob:{self.origin}/", "data:")):
            self.faults.append(f"left the origin: {url}")


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, size: str) -> Iterator[OpenPage]:
    """`open_page(url, path="/", console_may_say="", **options)` opens a page; in the end it must have no faults."""
    opened: list[Watched] = []
    contexts = []

    def open_one(url: str, path: str = "/", *, console_may_say: str = "", **options: Any) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            has_touch=size == "phone",
            permissions=["clipboard-read", "clipboard-write"],
            **options,
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        watched = Watched(context.new_page(), url, console_may_say)
        opened.append(watched)
        watched.page.goto(url + path)
        return watched.page

    yield open_one
    for watched in opened:
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    for context in contexts:
        context.close()
    assert [fault for watched in opened for fault in watched.faults] == []


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, as its lock file names it."""
    folder = tmp_path_factory.mktemp("axe")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(Path(__file__).parent / name, folder)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")

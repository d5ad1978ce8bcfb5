"""What the tests of the page do over and over."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

PIXELS = """(image) => {
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [image.naturalHeight, image.naturalWidth, [...context.getImageData(0, 0, canvas.width, canvas.height).data]];
}"""


def idle(page: Page) -> None:
    """Waits until nothing is under way."""
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")


def open_tab(page: Page, name: str) -> None:
    """Opens a tab and waits for what it shows on its own."""
    page.click(f"#tab-{name}")
    expect(page.locator(f"#panel-{name}")).to_be_visible()
    idle(page)


def go(page: Page) -> None:
    """Presses the button and waits for the answer."""
    page.click("#go")
    idle(page)
    expect(page.locator("#notice")).to_be_hidden()


def set_range(page: Page, name: str, value: float) -> None:
    """Moves a slider as a person does: `input` while it moves, `change` when it is let go."""
    page.locator(f"#{name}").fill(str(value))
    page.locator(f"#{name}").dispatch_event("change")


def shown(page: Page, selector: str) -> np.ndarray:
    """The pixels of a picture that is shown, uint8 `[H, W, 3]`, at its own size."""
    height, width, values = page.locator(selector).evaluate(PIXELS)
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def pixels(data: bytes | Path) -> np.ndarray:
    """The pixels of a picture file, uint8 `[H, W, 3]`."""
    with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def save_sent_files(page: Page, folder: Path) -> None:
    """Saves the pictures that the last edit sent, by the links that the page gives."""
    for link in page.locator("#files a").all():
        with page.expect_download() as download:
            link.click()
        download.value.save_as(folder / download.value.suggested_filename)


def run_curl(page: Page, folder: Path) -> None:
    """Runs, in that folder, the commands that the page shows."""
    page.select_option("#language", "curl")
    commands = page.inner_text("#snippet").replace("curl --fail", "curl --fail -sS --noproxy '*'")
    subprocess.run(["bash", "-euc", commands], cwd=folder, check=True, timeout=120)

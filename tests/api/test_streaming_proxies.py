"""Event streams come through real nginx and HAProxy as they are written, for programs and for browsers."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.api.proxies import PROXIES, run_proxy
from tests.api.sse import engines, metric, open_stream, wait_until
from tests.conftest import Server, StartServer, free_port
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

BODY = {"steps": 30, "seed": 3, "batch_size": 2}
PAGE_PORT = free_port()  # known before the server starts, which must let this origin in

PAGE = """<!doctype html><meta charset="utf-8"><title>reader</title><script type="module">
const found = {};
for (const base of BASES) {
  const began = performance.now();
  const response = await fetch(base + "/v1/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json", "Accept": "text/event-stream" },
    body: JSON.stringify(BODY),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const events = [];
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const blocks = (rest + value).split("\\n\\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const match = /^event: (.*)\\ndata: (.*)$/.exec(block);
      if (match) { JSON.parse(match[2]); events.push([match[1], (performance.now() - began) / 1000]); }
    }
  }
  found[base] = { seed: response.headers.get("X-Seed"), events };
}
await fetch("/result", { method: "POST", body: JSON.stringify(found) });
</script>"""


@pytest.fixture(scope="module")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A real server whose steps take some milliseconds each."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = tiny_model(folder, "plain", sample_size=32, block_out_channels=[32, 64])
    origin = f"http://127.0.0.1:{PAGE_PORT}"
    return start_server("--model", str(model), "--threads", "1", "--max-batch-size", "4", "--cors-origins", origin)


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_proxy(request.param, server, tmp_path_factory.mktemp("proxy")) as url:
        yield url


def assert_not_held_back(events: list[tuple[str, float]]) -> None:
    """Events are spread over the time that the work takes, instead of coming together at its end."""
    assert events[0][0] == "queued"
    assert events[-1][0] == "done"
    assert [name for name, _ in events].count("image") == 2
    end = events[-1][1]
    steps = [came for name, came in events if name == "step"]
    assert len(steps) == 2 * 29
    assert events[0][1] < end / 3
    assert steps[0] < end / 3
    assert max(later - earlier for earlier, later in itertools.pairwise(steps)) < end / 2


def test_events_arrive_one_by_one(proxy: str) -> None:
    """No proxy keeps events back until a buffer is full or the answer is over."""
    with open_stream(proxy, **BODY) as (response, events):
        assert response.headers["content-type"] == "text/event-stream"
        assert "content-encoding" not in response.headers
        came = [(event.name, event.came) for event in events]
    began = came[0][1]
    assert_not_held_back([(name, when - began) for name, when in came])


def test_a_small_event_waits_for_no_other(proxy: str, server: Server) -> None:
    """The first event, a few bytes, comes through while nothing follows it: the engine stands still."""
    (engine,) = engines(server)
    resumed = threading.Timer(2.0, engine.resume)
    engine.suspend()
    began = time.monotonic()
    resumed.start()
    try:
        with open_stream(proxy, steps=2) as (_, events):
            first = next(events)
            assert (first.name, first.came - began < 1.5) == ("queued", True)
            *_, last = events
        assert last.name == "done"
        assert last.came - began > 2.0
    finally:
        resumed.join()


def test_leaving_reaches_the_engine(proxy: str, server: Server) -> None:
    """Closing the connection to the proxy cancels what is left."""
    with open_stream(proxy, steps=40, batch_size=64) as (_, events):
        while next(events).name != "step":
            pass
    wait_until("the engine is idle", 5, lambda: metric(server, "num_requests_running") == 0)


def test_openai_stream(proxy: str) -> None:
    """The `openai` client streams through it too."""
    with openai.OpenAI(base_url=f"{proxy}/v1", api_key="none", max_retries=0) as client:
        stream = client.images.generate(prompt="", stream=True, partial_images=3, extra_body={"steps": 8})
        kinds = [event.type for event in stream]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]


class Page(http.server.BaseHTTPRequestHandler):
    """Serves the page and takes what it found."""

    page: str
    results: queue.Queue[Any]

    def do_GET(self) -> None:
        body = self.page.encode() if self.path == "/" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_reads_the_stream(server: Server, tmp_path: Path) -> None:
    """`fetch` with a reader in Chromium gets event after event: directly, and through each of the proxies."""
    with contextlib.ExitStack() as stack:
        bases = {"direct": server.url}
        for number, name in enumerate(PROXIES):
            bases[name] = stack.enter_context(run_proxy(name, server, tmp_path / f"proxy{number}"))
        Page.page = PAGE.replace("BASES", json.dumps([*bases.values()])).replace("BODY", json.dumps(BODY))
        Page.results = queue.Queue()
        pages = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", PAGE_PORT), Page))
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        stack.callback(pages.shutdown)
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", f"http://127.0.0.1:{PAGE_PORT}/"]
        log = stack.enter_context((tmp_path / "chromium.log").open("wb"))
        browser = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(browser.wait, 20)
        stack.callback(browser.terminate)
        found = Page.results.get(timeout=120)
    for name, base in bases.items():
        assert found[base]["seed"] == "3,4", name
        assert_not_held_back([(event, when) for event, when in found[base]["events"]])

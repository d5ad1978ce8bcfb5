"""What the HTTP process of a running server is made of."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_running_server_has_torch_in_its_engine_only(server: Server) -> None:
    """After it has answered with a picture, no file of torch is mapped into the HTTP process."""
    answer = httpx.get(f"{server.url}/v1/images/avatars-32/any/1.png", trust_env=False, timeout=60)
    assert answer.status_code == 200
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    engines = psutil.Process(server.process.pid).children()
    assert any("libtorch" in Path(f"/proc/{engine.pid}/maps").read_text() for engine in engines)


def test_the_http_process_stays_small(server: Server) -> None:
    """Under 200 MB resident."""
    assert psutil.Process(server.process.pid).memory_info().rss < 200_000_000

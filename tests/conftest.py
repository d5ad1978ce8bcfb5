"""A real server for tests: `onestep serve` in a process of its own, on a free port of 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

# Teams of OpenMP threads wait for each other at every operator: on a busy machine that is many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads this as it is imported: a GPU's kernels are tested without one.
os.environ.setdefault("TRITON_INTERPRET", "1")

READY_WITHIN = 120.0  # seconds; the first start of a session certifies, the next ones reuse that


@dataclass
class Server:
    """A running `onestep serve`."""

    process: subprocess.Popen[bytes]
    url: str  # http://127.0.0.1:PORT
    log: Path  # stdout and stderr together

    def wait_ready(self, timeout: float = READY_WITHIN) -> None:
        """Returns when /readyz is 200; fails with the log when the server ends or takes too long."""
        end = time.monotonic() + timeout
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < end:
                if self.process.poll() is not None:
                    pytest.fail(f"the server left with {self.process.returncode}:\n{self.log.read_text()}")
                try:
                    if client.get(f"{self.url}/readyz").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        pytest.fail(f"the server was not ready within {timeout:.0f} s:\n{self.log.read_text()}")

    def stop(self, timeout: float = 30.0) -> int:
        """Sends SIGTERM (once) and returns the exit code; kills what is left of the process group."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def server_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of servers: no settings of the person who runs the tests, one cache for the session."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONESTEP_")}
    cache = tmp_path_factory.mktemp("cache")
    return kept | {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(server_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """`start_server(*arguments, env=None, ready=True)` runs `onestep serve` until the session ends."""
    started = contextlib.ExitStack()  # stops every server, also when one of them will not stop

    def start(*arguments: str, env: dict[str, str] | None = None, ready: bool = True) -> Server:
        port = free_port()
        log = tmp_path_factory.mktemp("server") / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "service",
                    "serve",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                    *arguments,
                ],
                env=server_environment | (env or {}),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(process, f"http://127.0.0.1:{port}", log)
        started.callback(server.stop)
        if ready:
            server.wait_ready()
        return server

    with started:
        yield start


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Server:
    """One ready server with the default settings, shared by the tests that change nothing in it."""
    return start_server()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def inference() -> Iterator[None]:
    """As in an engine: one thread for each operator, and no gradients."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)

"""Starts a server in a process group of its own, waits until it answers with pictures, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

ROOT = Path(__file__).parents[2]
BODY = {"class_labels": 0, "seed": 1, "num_inference_steps": 1, "batch_size": 1, "output_format": "png"}
PORT = "{port}"  # in a command or a variable: the server's port


class Server:
    """A running server; a context manager. `url` is where it listens, `process.pid` the root of its processes."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, workers: int, log: Path, patience: float = 180
    ) -> None:
        """`workers` is how many processes must say that they are ready, by a file in PEER_READY."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.url, self.log, self.workers, self.patience = f"http://127.0.0.1:{port}", log, workers, patience
        self.folder = tempfile.TemporaryDirectory(prefix="peer-")
        ready = Path(self.folder.name, "ready")
        ready.mkdir()
        self.ready = ready
        full = os.environ | {key: value.replace(PORT, port) for key, value in environment.items()}
        full |= {"PYTHONPATH": str(ROOT), "PEER_READY": str(ready), "TMPDIR": self.folder.name}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [part.replace(PORT, port) for part in command],
                cwd=ROOT,
                env=full,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def generate(self, body: Mapping[str, Any], timeout: float = 120) -> dict[str, Any]:
        """The answer to one request. Raises httpx.HTTPError."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=timeout) as client:
            answer: dict[str, Any] = client.post("/v1/generate", json=body).raise_for_status().json()
        return answer

    def _wait(self) -> None:
        began = time.monotonic()
        while time.monotonic() - began < self.patience:
            if self.process.poll() is not None:
                break
            if len(list(self.ready.iterdir())) >= self.workers:
                with contextlib.suppress(httpx.HTTPError):
                    if self.generate(BODY)["images"]:
                        return
            time.sleep(0.2)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{self.process.args!r} did not become ready; its log ends with\n{tail}")

    def stop(self) -> None:
        """SIGTERM, 20 seconds, then SIGKILL for what is left of the process, its children and its group."""
        tree: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for each in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()
        psutil.wait_procs(tree, timeout=10)
        self.folder.cleanup()

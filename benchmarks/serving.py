"""A real `onestep serve` in a process of its own, for the benchmarks of this folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import httpx
from prometheus_client.parser import text_string_to_metric_families

READY_WITHIN = 300.0  # seconds


class Service(AbstractContextManager["Service"]):
    """A ready server on a free port of 127.0.0.1 until the block ends; settings are flags of `onestep serve`."""

    def __init__(self, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--log-level", "warning"]
        command += ["--cache-dir", self._folder.name, *flags]
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self.pid = self._process.pid

    def __enter__(self) -> Service:
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _wait_ready(self) -> None:
        end = time.monotonic() + READY_WITHIN
        with httpx.Client(base_url=self.url, trust_env=False, timeout=5) as client:
            while time.monotonic() < end:
                if self._process.poll() is not None:
                    raise SystemExit(f"the server left with {self._process.returncode}:\n{self._last_words()}")
                try:
                    if client.get("/readyz").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        raise SystemExit(f"the server was not ready within {READY_WITHIN:.0f} s:\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text().splitlines()[-5:])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()

    def counted(self, name: str) -> float:
        """The sum of a metric's samples now, over all labels."""
        return self.counts([name])[name]

    def counts(self, names: Sequence[str]) -> dict[str, float]:
        """The same of several, at one moment."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {name: sum(sample.value for sample in samples if sample.name == name) for name in names}

"""What has been measured so far, in a JSON file, so that a run can be stopped and continued."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.processes import ROOT

OURS = ("diffusers", "fastapi", "numpy", "pillow", "torch", "uvicorn")
THEIRS = ("bentoml", "diffusers", "fastapi", "litserve", "numpy", "pillow", "ray", "torch", "uvicorn")


class Enough(Exception):
    """The time given with `--minutes` is over."""


class Notes:
    """Measurements by key. `once` makes what is not there yet and saves the file after each."""

    def __init__(self, path: Path, conditions: dict[str, Any], minutes: float | None) -> None:
        """Raises SystemExit when the file is of other conditions."""
        self.path, self.end = path, None if minutes is None else time.monotonic() + 60 * minutes
        self.data: dict[str, Any] = {"conditions": conditions, "measured": {}}
        if path.exists():
            self.data = json.loads(path.read_text())
            if self.data["conditions"] != conditions:
                raise SystemExit(f"{path} is of other conditions; give another --json, or remove it")
        self.measured: dict[str, Any] = self.data["measured"]

    def once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurement of `key`, made now unless it is there. Raises Enough when time is over."""
        if key not in self.measured:
            if self.end is not None and time.monotonic() > self.end:
                raise Enough
            at, load = time.strftime("%Y-%m-%dT%H:%M:%S%z"), os.getloadavg()[0]
            self.measured[key] = {"at": at, "commit": _commit(), "load_before": round(load, 2)} | make()
            self.save()
        found: dict[str, Any] = self.measured[key]
        return found

    def save(self) -> None:
        """Writes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(rounded(self.data), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """`value` with its floats to four digits, so that the file can be read."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def conditions(python: Path, model: str, profile: dict[str, Any]) -> dict[str, Any]:
    """The machine, the versions on both sides, and how it is measured."""
    asked = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    theirs = subprocess.run([str(python), "-c", asked, *THEIRS], check=True, capture_output=True, text=True).stdout
    return {
        "model": model,
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in OURS},
        "peer_versions": json.loads(theirs),
        "profile": profile,
    }


def _commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

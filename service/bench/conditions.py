"""Under what conditions figures were taken: the machine of the generator, versions, and what the server says."""

from __future__ import annotations

import asyncio
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import msgspec

from service.bench.connection import Broken, Pool

__all__ = ["Refused", "Served", "look", "machine"]

PACKAGES: Final = ("onestep", "torch", "diffusers", "fastapi", "uvicorn", "uvloop", "httptools", "pillow", "msgspec")
LOOK_TIMEOUT: Final = 30.0  # seconds


class Refused(Exception):
    """The server did not answer, or refused to say what it serves; the reason in one line."""


@dataclass(frozen=True, slots=True)
class Served:
    """The model under test."""

    entry: dict[str, Any] | None  # of `/v1/models`, less its classes
    classes: int | None  # how many; None: it has none

    @property
    def largest_batch(self) -> int:
        """Images of the largest network forward; 0 when the server does not say."""
        return max((each["size"] for each in (self.entry or {}).get("batch_sizes", ())), default=0)

    def describe(self) -> str:
        """One line for people."""
        if self.entry is None:
            return "a server that does not describe its model"
        words = [str(self.entry["id"]), *(str(self.entry[key]) for key in ("device", "dtype") if self.entry.get(key))]
        sizes = self.entry.get("batch_sizes") or ()
        if sizes:
            best = max(sizes, key=lambda each: each["size"] / each["step_seconds"])
            rate = best["size"] / best["step_seconds"]
            milliseconds = 1e3 * best["step_seconds"]
            words.append(f"{best['size']} images a forward of {milliseconds:.1f} ms ({rate:.0f} image-steps/s)")
        return ", ".join(words)


def look(url: str, api_key: str | None = None, model: str | None = None, classes: int | None = 10) -> Served:
    """What the server says of `model`, or of its default model; `classes` stand where it says nothing.

    Raises `Refused`, and ValueError for what is no URL.
    """
    pool = Pool(url, api_key)
    with asyncio.Runner() as runner:
        return runner.run(_look(pool, model, classes))


async def _look(pool: Pool, model: str | None, classes: int | None) -> Served:
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            answer = await pool.request("GET", "/v1/models")
    except (Broken, TimeoutError) as error:
        raise Refused(f"the server does not answer: {error or 'timeout'}") from None
    finally:
        pool.close()
    if answer.status in (401, 403):
        raise Refused("the server wants a key: set ONESTEP_API_KEYS")
    try:
        entries: list[dict[str, Any]] = msgspec.json.decode(answer.body)["data"] if answer.status == 200 else []
        known = {entry["id"]: entry for entry in entries}
        if not known:
            return Served(None, classes)
        if model is not None and model not in known:
            raise Refused(f"the server has no model {model}; it has {', '.join(known)}")
        entry = entries[0] if model is None else known[model]
        found = len(entry["classes"]) or None
    except (msgspec.DecodeError, KeyError, TypeError, IndexError):  # it has another `/v1/models`
        return Served(None, classes)
    return Served({key: value for key, value in entry.items() if key != "classes"}, found)


def machine() -> dict[str, Any]:
    """The machine that this runs on, its load, and the versions installed here."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

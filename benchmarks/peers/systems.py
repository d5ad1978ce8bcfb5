"""What is compared: how each server is started, and what its small search tries."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.peers.processes import PORT, Server

ONESTEP: Final = "Onestep"
COMPILED: Final = "Onestep, compiled"
BFLOAT16: Final = "Onestep, bfloat16"
VARIANTS: Final = {ONESTEP: {}, COMPILED: {"ONESTEP_COMPILE": "true"}, BFLOAT16: {"ONESTEP_DTYPE": "bfloat16"}}
PIPELINE: Final = "pipeline loop"
LAYOUTS: Final = ((2, 1), (1, 2))  # threads of each worker, workers: one that has both cores, or one for each core
BATCHES: Final = (4, 8, 16, 32)
OFFLINE: Final = {  # nothing is reported to anyone
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Choice:
    """Settings of a peer: see `shared.Settings`."""

    threads: int
    workers: int
    max_batch: int
    wait_ms: float

    def environment(self, model: Path) -> dict[str, str]:
        """The settings as the peers read them. OMP_NUM_THREADS is what a user would set, and Ray sets by itself."""
        return {
            "PEER_MODEL": str(model),
            "PEER_PORT": PORT,
            "OMP_NUM_THREADS": str(self.threads),
            **{f"PEER_{key.upper()}": str(value) for key, value in asdict(self).items()},
            **OFFLINE,
        }

    def __str__(self) -> str:
        return f"{self.workers}x{self.threads} threads, batch {self.max_batch}, wait {self.wait_ms:g} ms"


@dataclass(frozen=True)
class Peer:
    """A server of the comparison; `batches` and `waits` are what the search tries, the first one first."""

    name: str
    module: str
    batches: tuple[int, ...] = BATCHES
    waits: tuple[float, ...] = (5, 0, 20)  # milliseconds

    def command(self, python: Path) -> list[str]:
        """How the peer's documentation starts it."""
        if self.module == "bentoml_service":
            place = f"benchmarks.peers.{self.module}:Generate"
            return [str(python.parent / "bentoml"), "serve", place, "--host", "127.0.0.1", "--port", PORT]
        return [str(python), "-m", f"benchmarks.peers.{self.module}"]


PEERS: Final = (
    Peer("FastAPI with a lock", "fastapi_lock", batches=(8,), waits=(0,)),  # it has neither: calls are one request
    Peer("LitServe", "litserve_server"),
    Peer("Ray Serve", "ray_server"),
    Peer(
        "BentoML", "bentoml_service", waits=(10_000, 1_000, 60_000)
    ),  # max_latency_ms: what it aims at, and refuses past
)


def start_peer(peer: Peer, choice: Choice, model: Path, python: Path, log: Path) -> Server:
    """The peer with these settings, not yet awaited."""
    return Server(peer.command(python), choice.environment(model), workers=choice.workers, log=log)


def start_onestep(model: Path, cache: Path, log: Path, settings: Mapping[str, str]) -> Server:
    """`onestep serve` as it is, or with `compile` on. The first start measures and compiles; `cache` keeps both."""
    command = [sys.executable, "-m", "service", "serve", "--port", PORT, "--model", str(model)]
    environment = {"ONESTEP_CACHE_DIR": str(cache), **settings, **OFFLINE}
    return Server(command, environment, workers=0, log=log, patience=600)

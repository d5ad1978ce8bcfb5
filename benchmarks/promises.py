"""Measures what the service promises about time and memory, on a real server, and prints a table.

    python benchmarks/promises.py [--model PLACE] [--json FILE]

Starts `onestep serve` on a free port of 127.0.0.1 with a cache folder of its own. Takes a few minutes; run it on
an idle machine. Nothing here passes or fails by itself: the table shows measured beside promised.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil


@dataclass
class Row:
    """One promise."""

    name: str
    measured: str
    promised: str


class Service:
    """A real server in a process of its own."""

    def __init__(self, model: str, cache: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--model", model]
        environment = os.environ | {"ONESTEP_CACHE_DIR": str(cache), "ONESTEP_LOG_FORMAT": "json"}
        self.began = time.monotonic()
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.live = self._first("/livez")
        self.ready = self._first("/readyz")
        self.picture = self._first("/v1/images/MODEL/any/1.png".replace("MODEL", self.model_name()))

    def model_name(self) -> str:
        """The default model's served name."""
        name: str = httpx.get(f"{self.url}/v1/models", trust_env=False).json()["data"][0]["id"]
        return name

    def _first(self, path: str) -> float:
        """Seconds from the start of the process until `path` answers 200."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            while time.monotonic() - self.began < 300:
                try:
                    if client.get(path).status_code == 200:
                        return time.monotonic() - self.began
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        raise SystemExit(f"{path} did not answer 200 within 300 s")

    def memory(self) -> float:
        """Resident memory of the HTTP process in MiB."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def stop(self) -> None:
        """SIGTERM, and waits."""
        self.process.terminate()
        self.process.wait(90)


def client_of(service: Service) -> httpx.AsyncClient:
    """A client with as many connections as it likes."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=service.url, timeout=300, trust_env=False, limits=limits)


async def latency(client: httpx.AsyncClient, seed: int) -> float:
    """Seconds of a one-step request."""
    began = time.monotonic()
    (await client.post("/v1/generate", json={"seed": seed})).raise_for_status()
    return time.monotonic() - began


async def step_seconds(client: httpx.AsyncClient) -> tuple[float, float]:
    """Mean seconds of a forward so far, and their number."""
    text = (await client.get("/metrics")).text
    sums = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("onestep_step_time_seconds_sum")]
    counts = [
        float(line.split()[-1]) for line in text.splitlines() if line.startswith("onestep_step_time_seconds_count")
    ]
    return sum(sums), sum(counts)


async def waiting_for_others(service: Service) -> Row:
    """One-step requests beside one of 64 images x 40 steps."""
    async with client_of(service) as client:
        idle = statistics.median([await latency(client, seed) for seed in range(15)])
        bulk = asyncio.create_task(
            client.post("/v1/generate", json={"seed": 7, "batch_size": 64, "num_inference_steps": 40})
        )
        await asyncio.sleep(1.0)
        seconds, count = await step_seconds(client)
        beside = [await latency(client, seed) for seed in range(100, 120)]
        seconds_after, count_after = await step_seconds(client)
        assert not bulk.done(), "the bulk request ended too soon"
        bulk.cancel()
    forward = (seconds_after - seconds) / (count_after - count)
    worst, typical = max(beside), statistics.median(beside)
    return Row(
        "one-step latency beside 64 x 40 steps",
        f"idle {idle * 1e3:.0f} ms, median {typical * 1e3:.0f} ms, worst {worst * 1e3:.0f} ms; a forward is "
        f"{forward * 1e3:.0f} ms: (median - idle) / forward = {(typical - idle) / forward:.2f}, "
        f"worst {(worst - idle) / forward:.2f}",
        "<= 3 forwards over idle",
    )


PROBE = """
import http.client, json, select, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
lags = []
while not select.select([sys.stdin], [], [], 0.005)[0]:
    began = time.monotonic()
    connection.request("GET", "/livez")
    connection.getresponse().read()
    lags.append(time.monotonic() - began)
print(json.dumps(sorted(lags)))
"""


async def loop_lag(service: Service) -> Row:
    """/livez, asked by a process of its own, beside 200 requests in flight and hostile bodies."""
    hostile = b"[" * 250_000 + b"1" * 4_500_000 + b"]" * 250_000
    port = service.url.rsplit(":", 1)[1]
    pipe = asyncio.subprocess.PIPE
    async with client_of(service) as client:
        load = [asyncio.create_task(client.post("/v1/generate", json={"seed": seed})) for seed in range(200)]
        await asyncio.sleep(0.5)
        prober = await asyncio.create_subprocess_exec(sys.executable, "-c", PROBE, port, stdin=pipe, stdout=pipe)
        await asyncio.sleep(0.2)
        refused = [
            await client.post("/v1/generate", content=hostile, headers={"content-type": "application/json"})
            for _ in range(3)
        ]
        await asyncio.gather(*load)
    out, _ = await prober.communicate(b"stop")
    lags = json.loads(out)
    return Row(
        "/livez beside 200 requests and three 5 MB hostile bodies",
        f"worst {lags[-1] * 1e3:.0f} ms, p99 {lags[int(len(lags) * 0.99)] * 1e3:.0f} ms of {len(lags)}; "
        f"refusals {sorted({answer.status_code for answer in refused})}",
        "< 50 ms",
    )


async def rejected(service: Service) -> Row:
    """Memory before and after 1,000 refused requests."""
    bodies: list[object] = [
        {"seed": -1},
        {"batch_size": 0},
        {"nonsense": 1},
        {"timesteps": [1, 2]},
        {"latents": "AAAA"},
    ]

    async def thousand(client: httpx.AsyncClient) -> None:
        for i in range(1000):
            answer = await client.post("/v1/generate", json=bodies[i % len(bodies)])
            assert answer.status_code == 422, answer.text

    async with client_of(service) as client:
        await thousand(client)
        before = service.memory()
        await thousand(client)
    after = service.memory()
    return Row(
        "memory of the HTTP process over 1,000 refusals", f"{before:.1f} -> {after:.1f} MiB", "where it was; < 200 MB"
    )


def main() -> None:
    """Runs all of it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        first = Service(args.model, Path(cache))
        first.stop()
        again = Service(args.model, Path(cache))
        rows.append(Row("/livez after start", f"{first.live:.2f} s, {again.live:.2f} s", "< 2 s"))
        rows.append(Row("ready, first start", f"{first.ready:.1f} s (picture {first.picture:.1f} s)", "picture < 25 s"))
        rows.append(
            Row("ready, restart", f"{again.ready:.1f} s (picture {again.picture:.1f} s)", "< 6 s (picture < 10 s)")
        )
        try:
            rows += [asyncio.run(check(again)) for check in (waiting_for_others, loop_lag, rejected)]
        finally:
            again.stop()
    conditions = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load average at the end": os.getloadavg(),
        "python": platform.python_version(),
    }
    print(f"conditions: {conditions}\n")
    for row in rows:
        print(f"{row.name}\n    measured  {row.measured}\n    promised  {row.promised}")
    if args.json:
        args.json.write_text(
            json.dumps({"conditions": conditions, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()

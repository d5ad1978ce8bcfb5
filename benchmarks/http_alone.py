"""What one HTTP process can carry when the engine costs nothing: requests per second, and processor time by stage.

    python -m benchmarks.http_alone [--seconds 4] [--clients 16] [--json FILE]

`benchmarks.instant.server` is the real application and server in a process of its own. Its engine, in another process
as always, answers at once with pictures made long ago: validation, admission, the socket, encoding and HTTP are what
they are in service. `service.bench` loads it with clients that wait for their answers.

CPU of a request is the HTTP process' own user and system time (psutil) over all requests of a run, without the engine's
and the generator's. Then the same run on a second server whose stages are wrapped (`benchmarks.instant.server.STAGES`):
each call's thread time is summed up, over the loop's thread and the encoding threads, and divided by the requests. What
the stages do not explain is split in two: the floor, which is all that an empty answer (/livez) costs, and the rest:
middleware, body, tasks, threads handed over to and back, timers, metrics, the access log. Requests/s depend on how many
cores the generator and the engine leave; the reciprocal of the CPU time does not, and is told as "alone on a core".
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec
import psutil

from benchmarks.instant.server import STAGES
from service.bench.conditions import look, machine
from service.bench.load import run_closed
from service.bench.report import Result
from service.bench.workloads import Call, Source, Workload, make_workload

CLASSES = 10
URLS = 64  # different pictures, all of which fit into the cache
FLOOR, REST = "floor: an empty answer", "rest"


class InstantServer(AbstractContextManager["InstantServer"]):
    """`benchmarks.instant.server`, ready, until the block ends. Its log goes to a file, as an operator's would."""

    def __init__(self, *flags: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ONESTEP_")}
        with Path(self._folder.name, "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.instant.server", *flags],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.url = f"http://127.0.0.1:{self._line()}"
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(base_url=self.url, trust_env=False, transport=transport) as client:
            while client.get("/readyz").status_code != 200:
                pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def cpu_seconds(self) -> float:
        """User and system time of the HTTP process so far, without its engine's."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def stages(self) -> dict[str, dict[str, float]]:
        """What each stage has taken since the last call: `cpu_ms`, `wall_ms`, `calls`. Needs `--stages`."""
        self._process.send_signal(signal.SIGUSR1)
        found: dict[str, dict[str, float]] = json.loads(self._line())
        return found

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the server left with {self._process.wait()}")
        return line.strip()


def repeating(name: str, calls: list[Call]) -> Workload:
    """A workload that draws from these."""

    def draw(source: Source, rng: random.Random) -> Call:
        return rng.choice(calls)

    return Workload(name, Source(CLASSES), draw, 16)


def batches_of_four() -> Workload:
    """Requests for four images of one step."""
    source, rng = Source(CLASSES), random.Random(0)
    bodies = (msgspec.json.encode(source.fields(rng, 4, 1)) for _ in iter(int, 1))
    return repeating("batch of 4", [Call("batch", "/v1/generate", body, 4, 4) for body in islice(bodies, 256)])


def workloads(url: str, model: str) -> list[Workload]:
    """Everything that is measured, the floor first. Asks for each image URL once, so that they are cached."""
    paths = [f"/v1/images/{model}/any/{seed}.png" for seed in range(URLS)]
    with httpx.Client(base_url=url, trust_env=False) as client:
        tags = [client.get(path).raise_for_status().headers["etag"] for path in paths]
    cached = [Call("hit", path, b"", 0, 0, method="GET") for path in paths]
    known = [
        Call("304", path, b"", 0, 0, method="GET", headers={"If-None-Match": tag}, status=304)
        for path, tag in zip(paths, tags, strict=True)
    ]
    return [
        repeating("/livez", [Call("livez", "/livez", b"", 0, 0, method="GET")]),
        repeating("image URL, 304", known),
        repeating("image URL, cached", cached),
        make_workload("singles", classes=CLASSES),
        batches_of_four(),
        make_workload("mixed", classes=CLASSES),
    ]


def cpu_per_request(server: InstantServer, workload: Workload, clients: int, seconds: float) -> tuple[Result, float]:
    """A run after a short one that warms up, and the HTTP process' milliseconds of CPU for each of its requests."""
    run_closed(server.url, workload, clients, 0.3, 0.0)
    began = server.cpu_seconds()
    found = run_closed(server.url, workload, clients, seconds, 0.0)
    spent = server.cpu_seconds() - began
    if found.failures or not found.ok:
        raise SystemExit(f"{workload.name}: {found.failures or 'nothing was answered'}")
    return found, 1e3 * spent / found.ok


def stages_per_request(
    server: InstantServer, workload: Workload, clients: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Milliseconds of each stage for each request, of a server with `--stages`: `cpu_ms`, `wall_ms`."""
    run_closed(server.url, workload, clients, 0.3, 0.0)
    server.stages()
    found = run_closed(server.url, workload, clients, seconds, 0.0)
    return {
        stage: {key: spent[key] / found.ok for key in ("cpu_ms", "wall_ms")} for stage, spent in server.stages().items()
    }


def measure(clients: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each workload."""
    rows: list[dict[str, Any]] = []
    with InstantServer() as server:
        model = (look(server.url).entry or {})["id"]
        some = workloads(server.url, model)
        for workload in some:
            found, cpu = cpu_per_request(server, workload, clients, seconds)
            rows.append({
                "workload": workload.name,
                "requests_per_second": found.requests_per_second,
                "cpu_ms": cpu,
                "p50_ms": found.latency.p50 if found.latency else None,
                "generator_cpu_ms": 1e3 * found.generator_cpu_seconds / found.ok,
            })  # fmt: skip
    with InstantServer("--stages") as server:
        some = workloads(server.url, model)
        for workload, row in zip(some, rows, strict=True):
            spent = stages_per_request(server, workload, clients, seconds)
            stages = {stage: each["cpu_ms"] for stage, each in spent.items()}
            stages[FLOOR] = rows[0]["cpu_ms"]
            row["stages"] = stages | {REST: row["cpu_ms"] - sum(stages.values())}
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Both tables."""
    lines = [f"{'':22}{'requests/s':>12}{'CPU ms':>9}{'alone on a core':>18}{'p50 ms':>9}"]
    lines += [
        f"{row['workload']:22}{row['requests_per_second']:>12.0f}{row['cpu_ms']:>9.3f}"
        f"{1e3 / row['cpu_ms']:>16.0f}/s{row['p50_ms']:>9.2f}"
        for row in rows
    ]
    lines += ["", f"{'CPU ms of a request':26}" + "".join(f"{row['workload']:>19}" for row in rows[1:])]
    for stage in (*STAGES, FLOOR, REST):
        cells = (f"{row['stages'][stage]:.3f}" if stage in row["stages"] else "-" for row in rows[1:])
        lines.append(f"{stage:26}" + "".join(f"{cell:>19}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of the twelve runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    conditions = machine()
    rows = measure(args.clients, args.seconds)
    print(f"{conditions['cpu']}, {conditions['cores']} cores, {args.clients} clients\n{table(rows)}")
    if args.json:
        report = {"machine": conditions, "clients": args.clients, "seconds": args.seconds, "rows": rows}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

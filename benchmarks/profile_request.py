"""Where each millisecond of a request goes on an idle server, and each of one second at saturation.

    python -m benchmarks.profile_request [--model bundled] [--dtype float32] [--seconds 5] [--json FILE]

Four measurements one after the other, each alone on the machine: the network and the engine's steps around it in
this process (`benchmarks.network_profile`, by torch.profiler and stopwatches); the HTTP process' stages before an
engine that costs nothing (`benchmarks.http_alone`); `onestep serve` with one client that asks for singles; the same
saturated by the mixed workload: there by its answers' own timings, its metrics, and processor time of its processes
and threads (psutil).

`left` is what could be won: a row's time less the least it could take. For convolutions, attention and linear layers
the least is their arithmetic at the peak of matrix products, measured on the same threads; for everything else it is
nothing. CPU only. Rows that are differences of measurements are marked with ~; on a busy machine they may be off, or
negative.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.http_alone import InstantServer, stages_per_request
from benchmarks.network_profile import ATTENTION, CONV, KINDS, engine_profile, network_profile
from benchmarks.serving import Service
from service.bench.conditions import Served, look, machine
from service.bench.load import run_closed
from service.bench.report import Result
from service.bench.sweep import clients_for
from service.bench.workloads import make_workload
from service.models.places import load_infos

Stages = Mapping[str, Mapping[str, float]]  # of `stages_per_request`
LONGEST_STEP = 30.0  # seconds
METRICS = {
    "steps": "onestep_step_time_seconds_count",
    "step_seconds": "onestep_step_time_seconds_sum",
    "rows": "onestep_batch_size_sum",
    "padding": "onestep_batch_padding_total",
}


class Line(NamedTuple):
    """A row of a table, in milliseconds."""

    what: str
    ms: float
    least: float = 0.0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """With `left`."""
        return self._asdict() | {"left": self.ms - self.least}


def least_ms(network: dict[str, Any], part: str, kind: str) -> float:
    """Of the arithmetic of `kind` in a forward, at the measured peak."""
    gflop = network["gflop_per_image_step"].get(kind, 0.0) * network[part]["rows"]
    return float(1e3 * gflop / network[part]["peak_gflops"])


def forward_lines(network: dict[str, Any], part: str, scale: float = 1.0) -> list[Line]:
    """The kinds of a forward, `scale` times."""
    kinds, lines = network[part]["kinds_ms"], []
    for kind in KINDS:
        least = least_ms(network, part, kind)
        note = f"{100 * least / kinds[kind]:.0f} % of the matrix product's peak" if least else ""
        lines.append(Line(f"  network: {kind}", scale * kinds[kind], scale * least, note))
    return lines


def one_request(found: Result, network: dict[str, Any], engine: dict[str, float], stages: Stages) -> list[Line]:
    """A single image of one step on an idle server; the lines without two spaces before add up to the latency."""
    assert found.latency is not None
    means = {name: times.mean for name, times in found.stages.items() if times is not None}
    wall = {stage: each["wall_ms"] for stage, each in stages.items()}
    planning = wall["parse"] + wall["validate"] + wall["plan"]
    files = wall["encode PNG"] + wall["build JSON and base64"]
    forward = network["single"]["ms"]
    least = least_ms(network, "single", CONV) + least_ms(network, "single", ATTENTION)
    beside = means["inference"] - forward - engine["noise"]
    known = planning + means["queue"] + means["inference"] + engine["uint8"] + means["encode"]
    return [
        Line("~ client, kernel, HTTP, middleware", found.latency.mean - means["total"] - wall["build response"]),
        Line("parse, validate, plan", planning),
        Line("admit, socket to the engine, wake it", means["queue"], note=f"scheduler {engine['schedule']:.3f} ms"),
        Line("inference", means["inference"], least),
        Line("  draw noise", engine["noise"]),
        *forward_lines(network, "single"),
        Line("  ~ sampling, messages, other load", beside, note="inference less noise and network"),
        Line("pixels to uint8", engine["uint8"]),
        Line("~ socket back, booking, tasks", means["total"] - known, note=f"packing {engine['messages']:.3f} ms"),
        Line("encode", means["encode"]),
        Line("  encode PNG", wall["encode PNG"]),
        Line("  build JSON and base64", wall["build JSON and base64"]),
        Line("  ~ to the encoding thread and back", means["encode"] - files),
        Line("build response", wall["build response"]),
    ]  # fmt: skip


class Meter:
    """Processor seconds of a service's processes and of its engine's main thread, and its metrics."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._http = psutil.Process(service.pid)
        self._engine = next(
            child for child in self._http.children() if "service.engine.process" in " ".join(child.cmdline())
        )

    def read_at_step(self) -> dict[str, float]:
        """Everything when the next step has ended, in seconds and counts: two readings have whole steps between."""
        first = counts = self._service.counts(list(METRICS.values()))
        end = time.monotonic() + LONGEST_STEP
        while counts[METRICS["steps"]] == first[METRICS["steps"]]:
            if time.monotonic() > end:
                raise SystemExit(f"the engine made no step in {LONGEST_STEP:.0f} s")
            time.sleep(0.002)
            counts = self._service.counts(list(METRICS.values()))
        http, engine = self._http.cpu_times(), self._engine.cpu_times()
        threads = {each.id: each.user_time + each.system_time for each in self._engine.threads()}
        return {
            "http": http.user + http.system,
            "engine": engine.user + engine.system,
            "engine_main": threads.get(self._engine.pid, 0.0),
            **{key: counts[name] for key, name in METRICS.items()},
        }


def saturated(service: Service, served: Served, seconds: float) -> dict[str, Any]:
    """The mixed workload at saturation, and what everything took in each second while it was."""
    workload = make_workload("mixed", classes=served.classes)
    clients = clients_for(workload, served.largest_batch)
    meter = Meter(service)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_closed, service.url, workload, clients, seconds + 1.0, 1.0)
        time.sleep(1.0)
        before, began = meter.read_at_step(), time.monotonic()
        time.sleep(seconds)
        after, ended = meter.read_at_step(), time.monotonic()
        found = running.result()
    per_second = {key: (after[key] - before[key]) / (ended - began) for key in before}
    per_second["generator"] = found.generator_cpu_seconds / found.seconds
    return {"result": found.to_json(), "per_second": per_second, "clients": clients}


def one_second(run: dict[str, Any], network: dict[str, Any], stages: Stages, cores: int) -> dict[str, list[Line]]:
    """`engine`: its wall time. `cores`: processor time of everything; together it is that of the cores."""
    each = run["per_second"]
    peak = network["full"]["peak_gflops"]
    gflop = {kind: each["rows"] * value for kind, value in network["gflop_per_image_step"].items()}
    least = 1e3 * sum(gflop.values()) / peak
    in_steps = 1e3 * each["step_seconds"] / cores  # a lane's
    network_ms = each["rows"] / network["full"]["rows"] * network["full"]["ms"]
    engine = [
        Line("in steps, mean of the lanes", in_steps, least,
             f"{each['steps']:.1f} steps of {each['rows'] / max(each['steps'], 1e-9):.1f} rows, "
             f"{100 * each['padding'] / max(each['rows'] + each['padding'], 1e-9):.0f} % padding"),
        *forward_lines(network, "full", each["rows"] / network["full"]["rows"]),
        Line("  ~ noise, sampling, padding, other load", in_steps - network_ms),
        Line("between steps", 1e3 - in_steps, note="schedule, hand out, or nothing to do"),
    ]  # fmt: skip
    rate = run["result"]["requests_per_second"]
    known = {stage: rate * spent["cpu_ms"] for stage, spent in stages.items()}
    http, engine_cpu, main, generator = (1e3 * each[key] for key in ("http", "engine", "engine_main", "generator"))
    return {
        "engine": engine,
        "cores": [
            Line("engine: lanes and reader", engine_cpu - main, cores * least, "least: the same products on all cores"),
            Line("engine: main thread", main),
            Line(f"HTTP process, {rate:.1f} requests", http),
            *(Line(f"  {stage}", ms) for stage, ms in known.items()),
            Line("  ~ HTTP, middleware, tasks", http - sum(known.values())),
            Line("load generator", generator),
            Line("~ nobody, or others", 1e3 * cores - http - engine_cpu - generator),
        ],
    }


def table(title: str, lines: list[Line]) -> str:
    """For people."""
    rows = [f"\n{title:46}{'ms':>9}{'least':>9}{'left':>9}"]
    rows += [
        f"{each.what:46}{each.ms:>9.2f}{each.least:>9.2f}{each.ms - each.least:>9.2f}  {each.note}" for each in lines
    ]
    return "\n".join(row.rstrip() for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    conditions = machine()
    cores = conditions["cores"]
    info = next(iter(load_infos(args.model).values()))
    network = network_profile(info, args.dtype, cores, args.seconds / 2)
    engine = engine_profile(info, args.dtype, cores, args.seconds / 2)
    with InstantServer("--stages") as instant:
        # One client: as on an idle server. Its model is the bundled one, whose pictures are small.
        single = stages_per_request(instant, make_workload("singles"), 1, args.seconds)
        mixed = stages_per_request(instant, make_workload("mixed"), 16, args.seconds)
    with Service("--model", args.model, "--device", "cpu", "--dtype", args.dtype) as service:
        served = look(service.url)
        idle = run_closed(service.url, make_workload("singles", classes=served.classes), 1, args.seconds, 1.0)
        run = saturated(service, served, args.seconds)
    if idle.latency is None:
        raise SystemExit(f"no request was answered: {idle.failures}")

    request = one_request(idle, network, engine["single"], single)
    second = one_second(run, network, mixed, cores)
    print(f"{conditions['cpu']}, {cores} cores; {served.describe()}")
    for part, words in (("single", "one row"), ("full", "all lanes")):
        each = network[part]
        print(
            f"matrix products, {each['lanes']} x {each['threads']} threads ({words}): {each['peak_gflops']:.0f} GFLOP/s"
        )
    print(table(f"one request, {idle.latency.mean:.1f} ms", request))
    print(table("a second at saturation: the engine", second["engine"]))
    print(table(f"a second at saturation: {cores} cores", second["cores"]))
    if args.json:
        tables = {"request": request, **second}
        report = {
            "machine": conditions,
            "served": served.entry,
            "network": network,
            "engine": engine,
            "http_stages": {"single": single, "mixed": mixed},
            "idle": idle.to_json(),
            "saturated": run,
            "tables": {name: [line.to_json() for line in lines] for name, lines in tables.items()},
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How long a one-step request takes beside bulk requests that never end, in forwards of the network.

    python -m benchmarks.interactive [--seconds 20] [--bulk 2] [--json FILE]

One client keeps two requests (or `--bulk`) of 32 images and 16 steps running, another sends singles: first alone, then
beside the bulk and waiting for each answer, then beside it and arriving at random.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from benchmarks.serving import Service
from service.bench.conditions import look, machine
from service.bench.load import run_closed, run_open
from service.bench.workloads import BULK_CLIENTS, make_workload

SHARE = 0.5  # of the waiting client's rate: that of the arrivals
COUNT, SUM = "onestep_step_time_seconds_count", "onestep_step_time_seconds_sum"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the three runs")
    parser.add_argument("--bulk", type=int, default=BULK_CLIENTS, help="requests that are under way all the time")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    with Service("--model", args.model) as service:
        served = look(service.url)
        singles = make_workload("singles", classes=served.classes)
        beside = make_workload("interactive", classes=served.classes)
        if beside.background is not None:
            beside = replace(beside, background=replace(beside.background, clients=args.bulk))
        idle = run_closed(service.url, singles, 1, args.seconds, 1.0)
        seconds, count = service.counted(SUM), service.counted(COUNT)
        closed = run_closed(service.url, beside, 1, args.seconds, 2.0)
        forward = 1e3 * (service.counted(SUM) - seconds) / (service.counted(COUNT) - count)
        arriving = run_open(service.url, beside, SHARE * closed.requests_per_second, args.seconds, 2.0)
    sizes = (served.entry or {}).get("batch_sizes") or []
    measured = 1e3 * sizes[-1]["step_seconds"]
    print(f"{served.describe()}")
    print(f"a forward: {measured:.1f} ms when the server measured it at its start, {forward:.1f} ms beside the bulk")
    rows = []
    for name, found in (("alone", idle), ("beside bulk", closed), ("beside bulk, arriving", arriving)):
        times = found.latency
        if times is None:
            raise SystemExit(f"{name}: no request was answered; {found.failures}")
        rows.append({"run": name, "p50": times.p50, "p95": times.p95, "p95_in_forwards": times.p95 / forward,
                     "p95_in_measured_forwards": times.p95 / measured, "result": found.to_json()})  # fmt: skip
        print(
            f"{name:24} p50 {times.p50:6.1f} ms   p95 {times.p95:6.1f} ms = {times.p95 / forward:.2f} forwards "
            f"({times.p95 / measured:.2f} of those measured at the start)   {found.requests_per_second:.1f} requests/s",
            flush=True,
        )
    if args.json:
        report = {
            "generator": machine(),
            "served": served.entry,
            "bulk": args.bulk,
            "forward_ms": forward,
            "runs": rows,
        }
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

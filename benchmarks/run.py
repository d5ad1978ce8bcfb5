"""Every workload of `onestep bench` against the bundled model: `make bench`, or `python -m benchmarks.run`.

Starts `onestep serve` on a free port and writes `load-N-cores.json` and its plots (with matplotlib, which the `bench`
extra brings) into `benchmarks/results`. Takes about four minutes, with `--full` about fifteen; run it on an idle
machine.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.serving import Service
from service.bench.conditions import look, machine
from service.bench.report import Result
from service.bench.sweep import Options, clients_for, sweep
from service.bench.table import heading, row, stages_line
from service.bench.workloads import NAMES, make_workload

RESULTS = Path(__file__).resolve().parent / "results"
SHORT = Options(seconds=10, warm_up=2, loads=(0.3, 0.5, 0.7, 0.9))
FULL = Options(seconds=30, warm_up=3, loads=(0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--workload", action="append", choices=NAMES, help="default: all")
    parser.add_argument("--full", action="store_true", help="longer runs at more loads")
    parser.add_argument("--seconds", type=float, help="of each run, instead")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    chosen = FULL if args.full else SHORT
    with Service("--model", args.model) as service:
        report, results = measure(service, args.workload or NAMES, chosen, args.seconds or chosen.seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / f"load-{report['generator']['cores']}-cores.json"
    target.write_text(json.dumps(report | {"results": [each.to_json() for each in results]}, indent=2) + "\n")
    print(f"\nwritten: {target}")
    if find_spec("matplotlib") is None:
        print(f"no plots without matplotlib: pip install 'onestep[bench]', then python -m benchmarks.plots {target}")
        return
    from benchmarks.plots import write_plots

    for plot in write_plots(target):
        print(f"written: {plot}")


def measure(
    service: Service, names: tuple[str, ...] | list[str], chosen: Options, seconds: float
) -> tuple[dict[str, Any], list[Result]]:
    """The conditions, and the results of all runs; prints a table as they come."""
    options = Options(seconds, chosen.warm_up, loads=chosen.loads, server_pid=service.pid)
    served = look(service.url)
    report: dict[str, Any] = {"generator": machine(), "served": served.entry}
    print(served.describe())
    results: list[Result] = []
    for name in names:
        workload = make_workload(name, classes=served.classes)
        print(f"\n{name}\n{heading()}", flush=True)
        clients = clients_for(workload, served.largest_batch)
        results += sweep(service.url, workload, clients, options, lambda result: print(row(result), flush=True))
        print(f"  in the last row, {stages_line(results[-1])}", flush=True)
    report["generator"]["load_average_after"] = machine()["load_average"]
    return report, results


if __name__ == "__main__":
    main()

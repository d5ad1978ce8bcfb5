"""`onestep bench URL`: how much a running service does, and how long it takes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.exits import ExitCode

if TYPE_CHECKING:
    from service.bench.conditions import Served
    from service.bench.sweep import Options
    from service.bench.workloads import Workload

__all__ = ["add_parsers"]

WORKLOADS = {
    "singles": "one image, one step",
    "mixed": "1, 1, 2 or 4 images of 1, 1, 2 or 4 steps",
    "interactive": "singles beside bulk requests that never end",
    "edits": "every edit, and as many plain generations",
}


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Registers the command; it sets `run`, a function of the parsed arguments that gives the exit code."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a running service",
        description="Measures a running service: first saturated by clients that wait for their answers, then with "
        "random arrivals at shares of what it did, where latency counts from when a request should have been sent. "
        "It puts full load on the service. Of ONESTEP_API_KEYS the first key is sent. Workloads: "
        + "; ".join(f"{name}: {what}" for name, what in WORKLOADS.items())
        + ".",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    parser.add_argument(
        "--workload", action="append", choices=list(WORKLOADS), help="may be given several times (default: mixed)"
    )
    parser.add_argument("--clients", type=_count, metavar="N", help="that saturate it (default: by its batch size)")
    parser.add_argument("--load", type=_loads, default=(0.5, 0.7, 0.9), metavar="X,X", help="default: 0.5,0.7,0.9")
    parser.add_argument("--seconds", type=_positive, default=10.0, metavar="S", help="of each run (default: 10)")
    parser.add_argument("--warm-up", type=_number, default=2.0, metavar="S", help="before each (default: 2)")
    parser.add_argument("--deadline", type=_positive, default=1.0, metavar="S", help="of `in time` (default: 1)")
    parser.add_argument("--timeout", type=_positive, default=60.0, metavar="S", help="of a request (default: 60)")
    parser.add_argument("--model", metavar="NAME", help="a name it serves (default: its default)")
    parser.add_argument("--classes", type=_class_count, default=10, metavar="N", help="if it does not say: 10")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is sent (default: 0)")
    parser.add_argument("--pid", type=_count, metavar="PID", help="of the service on this machine: counts its CPU time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes everything measured, and the conditions")
    parser.set_defaults(run=run_bench)


def run_bench(args: argparse.Namespace) -> int:
    """Measures, prints a table, writes the file; the exit code says how it ended."""
    from service.bench.conditions import Refused, look
    from service.settings import variable_of

    key = os.environ.get(variable_of("api_keys"), "").split(",")[0].strip() or None
    if args.pid is not None and find_spec("psutil") is None:
        return _refuse("--pid needs psutil: pip install 'onestep[bench]'", ExitCode.USAGE)
    if args.pid is not None and not _lives(args.pid):
        return _refuse(f"--pid: there is no process {args.pid}", ExitCode.USAGE)
    if args.json is not None and (args.json.is_dir() or not _may_write(args.json)):
        return _refuse(f"--json: {args.json} cannot be written", ExitCode.USAGE)
    try:
        served = look(args.url, key, args.model, args.classes or None)
    except ValueError as error:
        return _refuse(error, ExitCode.USAGE)
    except Refused as error:
        return _refuse(error, ExitCode.REMOTE)
    return _measure(args, key, served)


def _measure(args: argparse.Namespace, key: str | None, served: Served) -> int:
    from service.bench.sweep import Options
    from service.bench.workloads import make_workload

    options = Options(args.seconds, args.warm_up, args.deadline, args.timeout, args.load, key, args.pid)
    names = list(dict.fromkeys(args.workload or ["mixed"]))
    print(f"{args.url}: {served.describe()}", flush=True)
    results: list[dict[str, Any]] = []
    answered = True
    try:
        for name in names:
            workload = make_workload(name, classes=served.classes, model=args.model, seed=args.seed)
            found = _one_workload(args, workload, served, options)
            answered = answered and any(result["ok"] for result in found)
            results += found
    finally:  # what was measured until an interruption is kept
        if args.json is not None and results:
            _write(args, served, results)
    if not answered:
        return _refuse("no request was answered rightly", ExitCode.REMOTE)
    return ExitCode.OK


def _one_workload(
    args: argparse.Namespace, workload: Workload, served: Served, options: Options
) -> list[dict[str, Any]]:
    from service.bench.sweep import clients_for, sweep
    from service.bench.table import heading, row, stages_line

    print(f"\n{workload.name} ({WORKLOADS[workload.name]})\n{heading()}", flush=True)
    clients = args.clients or clients_for(workload, served.largest_batch)
    results = sweep(args.url, workload, clients, options, lambda result: print(row(result), flush=True))
    stages = stages_line(results[-1])
    if stages is not None:
        print(f"  in the last row, {stages}", flush=True)
    return [result.to_json() for result in results]


def _write(args: argparse.Namespace, served: Served, results: list[dict[str, Any]]) -> None:
    from service.bench.conditions import machine

    asked = {"timeout": args.timeout, "seed": args.seed, "load": args.load}
    report = {"generator": machine(), "served": served.entry, "asked": asked, "results": results}
    try:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SystemExit(_refuse(f"--json: {args.json}: {error.strerror}", ExitCode.USAGE)) from None


def _may_write(path: Path) -> bool:
    return os.access(path if path.exists() else path.parent, os.W_OK)


def _lives(pid: int) -> bool:
    from service.bench.cpu import cpu_of_tree

    return cpu_of_tree(pid) is not None


def _refuse(reason: object, code: ExitCode) -> ExitCode:
    print(f"onestep bench: {reason}", file=sys.stderr)
    return code


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value == 0:
        raise argparse.ArgumentTypeError("it must be more than 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _class_count(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _loads(text: str) -> tuple[float, ...]:
    """Shares with commas between; an empty text is none, for a closed loop alone."""
    return tuple(_positive(each) for each in text.split(",") if each.strip())

"""Onestep beside other ways to serve the same model: on one machine, in one run, each at its best.

    python -m benchmarks.compare [--model avatars-32|imagenet-64|FOLDER] [--peers-python PYTHON] [--json FILE]

First a small search of each peer's settings, then rounds of every system in turn, each started afresh, in closed loops
(throughput), then the same in open loops at a share of Onestep's own capacity (latency). Every peer must return the
same pictures as Onestep. What is measured is saved at once: the same command continues a run that was stopped, by
`--minutes` or otherwise. `benchmarks/peers/README.md` tells how to make the peers' environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.models import IMAGENET, folder_of
from benchmarks.peers.notes import Enough, Notes, conditions
from benchmarks.peers.pictures import Pixels, check, pictures
from benchmarks.peers.processes import ROOT, Server
from benchmarks.peers.report import Series, closed_table, open_table
from benchmarks.peers.search import small_search
from benchmarks.peers.systems import (
    BATCHES,
    BFLOAT16,
    COMPILED,
    ONESTEP,
    PEERS,
    PIPELINE,
    VARIANTS,
    Choice,
    Peer,
    start_onestep,
    start_peer,
)
from service.bench.load import run_closed, run_open
from service.bench.report import Result
from service.bench.workloads import make_workload

WORKLOADS = ("singles", "mixed")
KNOWN = 64  # requests that the pipeline loop knows beforehand

Names = tuple[str, ...]  # of workloads
Plan = dict[str, Mapping[str, Choice | None]]  # settings of each system in each workload; None is defaults
Runs = dict[str, Callable[[str, int], Result]]  # by workload, of a server's URL and process


@dataclass(frozen=True)
class Profile:
    """How long and how hard to measure."""

    clients: int = 32
    rounds: int = 3
    search_seconds: float = 10.0  # several batches of what fills them for seconds
    closed_seconds: float = 16.0  # this and the warm-up: longer than the longest request takes
    open_seconds: float = 20.0
    warm_up: float = 8.0
    deadline: float = 1.0
    load: float = 0.7  # of Onestep's capacity, offered in the open loops
    batches: tuple[int, ...] = (8, 4, 16, 32)


LARGE = Profile(8, 2, 20.0, 30.0, 60.0, 5.0, 30.0, batches=(4, 8))


class Comparison:
    """A run of the comparison: what it needs, and its steps."""

    def __init__(self, options: argparse.Namespace, profile: Profile) -> None:
        self.profile, self.python, self.work = profile, options.peers_python, options.work
        self.variants = (ONESTEP, *(COMPILED,) * options.compile, *(BFLOAT16,) * options.bfloat16)
        self.peers = [peer for peer in PEERS if options.peers is None or peer.name in options.peers]
        self.work.mkdir(parents=True, exist_ok=True)
        self.model, classes = folder_of(options.model, self.work)
        self.workloads = {name: make_workload(name, classes=classes) for name in WORKLOADS}
        facts = json.loads(json.dumps(conditions(self.python, options.model, asdict(profile))))
        path = options.json or self.work / f"{Path(options.model).name}.json"
        self.notes = Notes(path, facts, options.minutes)
        self.expected: list[Pixels] = []

    def start(self, system: str, choice: Choice | None) -> Server:
        """A peer with these settings; Onestep has none."""
        if choice is None:
            log = self.work / f"{system}.log".lower().replace(", ", "-")
            return start_onestep(self.model, self.work / "cache", log, VARIANTS[system])
        peer = next(each for each in PEERS if each.name == system)
        return start_peer(peer, choice, self.model, self.python, self.work / f"{peer.module}.log")

    def visit(self, system: str, choice: Choice | None, runs: Runs) -> dict[str, Any]:
        """Starts a server, compares its pictures, and runs the workloads one after the other."""
        print(f"{system}, {choice or 'defaults'}: {', '.join(runs)}", flush=True)
        with self.start(system, choice) as server:
            apart = check(system, pictures(server), self.expected, bfloat16=system == BFLOAT16)
            results = {key: run(server.url, server.process.pid).to_json() for key, run in runs.items()}
        return {"pictures_apart": apart, "settings": str(choice) if choice else "defaults", "results": results}

    def closed(self, name: str, seconds: float) -> Callable[[str, int], Result]:
        workload, profile = self.workloads[name], self.profile
        return lambda url, pid: run_closed(
            url, workload, profile.clients, seconds, profile.warm_up, timeout=120, server_pid=pid
        )

    def open(self, name: str, rate: float) -> Callable[[str, int], Result]:
        workload, profile = self.workloads[name], self.profile
        return lambda url, pid: run_open(
            url, workload, rate, profile.open_seconds, profile.warm_up, profile.deadline, timeout=120, server_pid=pid
        )

    def loop(self, choice: Choice, names: Names, seconds: float) -> dict[str, Any]:
        """The pipeline loop in these workloads."""
        print(f"{PIPELINE}, {choice}: {', '.join(names)}", flush=True)
        results = {}
        for name in names:
            bodies = [json.loads(call.body) for call in islice(self.workloads[name].calls(), KNOWN)]
            file = self.work / "bodies.json"
            file.write_text(json.dumps(bodies))
            command = [str(self.python), "-m", "benchmarks.peers.pipeline_loop", str(file.resolve()), str(seconds)]
            environment = {"PATH": "/usr/bin:/bin"} | choice.environment(self.model) | {"PEER_PORT": "0"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=600
            )
            results[name] = json.loads(done.stdout)
        return {"settings": str(choice), "results": results}

    def search(self, peer: Peer | None) -> dict[str, Choice]:
        """The best settings for each workload of a peer, or of the pipeline loop."""
        name, seconds = peer.name if peer else PIPELINE, self.profile.search_seconds

        def measure(choice: Choice) -> dict[str, float]:
            def visit() -> dict[str, Any]:
                if peer is None:
                    return self.loop(choice, WORKLOADS, seconds)
                return self.visit(name, choice, {each: self.closed(each, seconds) for each in WORKLOADS})

            results = self.notes.once(f"search/{name}/{choice}", visit)["results"]
            return {each: results[each]["image_steps_per_second"] for each in WORKLOADS}

        batches = peer.batches if peer else BATCHES
        allowed = [size for size in self.profile.batches if size in batches]
        return small_search(WORKLOADS, allowed or batches, peer.waits if peer else (0,), measure)

    def rounds(self, plan: Plan, rates: dict[str, float]) -> dict[str, list[Series]]:
        """Every system in turn, forwards and backwards: in open loops at `rates`, in closed ones without any.

        A system whose best settings differ between workloads is started for each of them.
        """
        rows = {name: {system: Series(system) for system in plan} for name in WORKLOADS}
        for number in range(self.profile.rounds):
            for system in list(plan)[:: 1 if number % 2 == 0 else -1]:
                for choice, names in grouped(plan[system]):
                    key = f"{'open' if rates else 'closed'}/{number}/{system}/{choice or 'defaults'}"
                    done = self.notes.once(key, partial(self.turn, system, choice, names, rates))
                    for name in names:
                        rows[name][system].add(done["settings"], done["results"][name])
        return {name: list(some.values()) for name, some in rows.items()}

    def turn(self, system: str, choice: Choice | None, names: Names, rates: dict[str, float]) -> dict[str, Any]:
        """One system in one round."""
        seconds = self.profile.closed_seconds
        if system == PIPELINE and choice is not None:
            return self.loop(choice, names, seconds)
        runs = {name: self.open(name, rates[name]) if rates else self.closed(name, seconds) for name in names}
        return self.visit(system, choice, runs)

    def run(self) -> None:
        """All of it. Raises Enough when time is over."""
        with self.start(ONESTEP, None) as server:
            self.expected = pictures(server)
        plan: Plan = {variant: dict.fromkeys(WORKLOADS) for variant in self.variants}
        plan |= {peer.name if peer else PIPELINE: self.search(peer) for peer in (None, *self.peers)}
        closed = self.rounds(plan, {})
        for name, rows in closed.items():
            print("\n" + closed_table(name, rows))
        rates = {
            name: self.profile.load * median(each["requests_per_second"] for each in rows[0].rounds)
            for name, rows in closed.items()
        }
        del plan[PIPELINE]  # nothing arrives there
        for name, rows in self.rounds(plan, rates).items():
            print("\n" + open_table(name, rates[name], rows))


def grouped(choices: Mapping[str, Choice | None]) -> list[tuple[Choice | None, Names]]:
    """The workloads of each choice."""
    return [(each, tuple(n for n, c in choices.items() if c == each)) for each in dict.fromkeys(choices.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="avatars-32")
    parser.add_argument("--peers-python", type=Path, default=ROOT / "out" / "peers" / "bin" / "python")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "compare", help="logs, caches, made models")
    parser.add_argument("--json", type=Path, help="what was measured; continued when it is there")
    parser.add_argument("--compile", action="store_true", help="also Onestep with its network compiled; needs g++")
    parser.add_argument("--bfloat16", action="store_true", help="also Onestep in bfloat16; diffusers' pipeline cannot")
    parser.add_argument("--peers", nargs="*", choices=[peer.name for peer in PEERS], help="only these")
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command continues")
    for field in ("rounds", "clients", "search_seconds", "closed_seconds", "open_seconds", "warm_up", "load"):
        kind = int if field in ("rounds", "clients") else float
        parser.add_argument(f"--{field.replace('_', '-')}", type=kind, help=f"instead of {getattr(Profile(), field)}")
    options = parser.parse_args()
    profile = LARGE if options.model == IMAGENET else Profile()
    given = {key: value for key, value in vars(options).items() if value is not None and hasattr(profile, key)}
    try:
        Comparison(options, replace(profile, **given)).run()
    except Enough:
        raise SystemExit("time is over; the same command continues") from None


if __name__ == "__main__":
    main()

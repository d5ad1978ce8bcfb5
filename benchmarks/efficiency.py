"""What HTTP, scheduling and encoding cost: image-steps per second over HTTP against the engine's forward alone.

    python -m benchmarks.efficiency [--device cuda --dtype bfloat16] [--compile] [--rounds 5] [--seconds 10]

In each round the server is saturated with the mixed workload (PNG in JSON) while the lone engine waits, then the lone
engine steps full batches of its best size while the server is idle: one after the other on the same cores, so that
what else the machine does weighs on both. The ratio is the first over the second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from benchmarks.peers.models import IMAGENET, folder_of
from benchmarks.serving import Service
from service.bench.conditions import look, machine
from service.bench.load import run_closed
from service.bench.sweep import clients_for
from service.bench.workloads import make_workload

MODELS = Path(__file__).resolve().parents[1] / "out" / "compare"  # made ones, as `benchmarks.compare` has them


class Alone:
    """`benchmarks.engine_alone` in its process."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "benchmarks.engine_alone", *flags]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.sizes = self._answer()

    def __enter__(self) -> Alone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def image_steps_per_second(self, seconds: float) -> float:
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return float(self._answer()["image_steps_per_second"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the lone engine ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help=f"or {IMAGENET}: its layout with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="the network compiled, on both sides; needs g++")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each side in each round")
    parser.add_argument(
        "--warm-up", type=float, default=6.0, help="longer than the longest request: as much work ends as begins"
    )
    parser.add_argument("--clients", type=int, help="default: by the largest batch")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    rounds: list[dict[str, Any]] = []
    model = str(folder_of(IMAGENET, MODELS)[0]) if args.model == IMAGENET else args.model
    flags = ["--model", model, "--device", args.device, "--dtype", args.dtype]
    flags += ["--compile"] if args.compile else []
    with Service(*flags) as service, Alone(*flags) as alone:
        served = look(service.url)
        workload = make_workload("mixed", classes=served.classes)
        clients = args.clients or clients_for(workload, served.largest_batch)
        print(f"{served.describe()}; alone the best size is {alone.sizes['best']}; {clients} clients")
        for _ in range(args.rounds):
            found = run_closed(service.url, workload, clients, args.seconds, args.warm_up, server_pid=service.pid)
            forward = alone.image_steps_per_second(args.seconds)
            steps = max(found.image_steps_per_second * args.seconds, 1)
            cpu = {
                "generator": 1e3 * found.generator_cpu_seconds / steps,
                "server": 1e3 * (found.server_cpu_seconds or 0.0) / steps,
            }
            rounds.append({
                "http": found.image_steps_per_second,
                "alone": forward,
                "ratio": found.image_steps_per_second / forward,
                "failures": found.failures,
                "cpu_ms_per_image_step": cpu,
            })  # fmt: skip
            print(
                f"over HTTP {found.image_steps_per_second:7.1f}   alone {forward:7.1f} image-steps/s   "
                f"ratio {rounds[-1]['ratio']:.3f}   CPU ms an image-step: server {cpu['server']:.2f}, "
                f"generator {cpu['generator']:.2f}",
                flush=True,
            )
    ratio = median(each["ratio"] for each in rounds)
    print(f"median ratio {ratio:.3f}")
    if args.json:
        report = {"generator": machine(), "served": served.entry, "compile": args.compile, "clients": clients}
        report["alone"] = alone.sizes
        args.json.write_text(json.dumps(report | {"rounds": rounds, "median_ratio": ratio}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Whether edits fill the network's forwards as plain generations do: mean rows per forward at saturation.

    python -m benchmarks.edit_rows [--rounds 3] [--seconds 10] [--json FILE]

In each round the server is saturated with the workload `edits` (half of it edits, half generations), then with
generations only, of as many images and steps. Rows and forwards are the server's own count.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import msgspec

from benchmarks.serving import Service
from service.bench.conditions import look, machine
from service.bench.load import run_closed
from service.bench.workloads import Call, Source, Workload, make_workload

WARM_UP = 4.0  # seconds
ROWS, FORWARDS = "onestep_batch_size_sum", "onestep_batch_size_count"


def as_generations(edits: Workload) -> Workload:
    """As `edits` in numbers of images and steps, but none of them an edit."""

    def draw(source: Source, rng: random.Random) -> Call:
        call = edits.draw(source, rng)
        fields = source.fields(rng, call.images, call.image_steps // call.images)
        return Call("generate", "/v1/generate", msgspec.json.encode(fields), call.images, call.image_steps)

    return Workload("generations", edits.source, draw, edits.clients)


def rows_per_forward(service: Service, workload: Workload, seconds: float) -> float:
    """Between the warm-up and the end of a closed loop, while all clients ask."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_closed, service.url, workload, workload.clients, seconds, WARM_UP)
        time.sleep(WARM_UP)
        rows, forwards = service.counted(ROWS), service.counted(FORWARDS)
        time.sleep(seconds)
        rows, forwards = service.counted(ROWS) - rows, service.counted(FORWARDS) - forwards
        failures = run.result().failures
    if failures:
        raise SystemExit(f"{workload.name}: {failures}")
    return rows / forwards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each side in each round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rounds = []
    with Service("--model", args.model) as service:
        served = look(service.url)
        edits = make_workload("edits", classes=served.classes)
        generations = as_generations(edits)
        print(served.describe())
        for _ in range(args.rounds):
            found = {each.name: rows_per_forward(service, each, args.seconds) for each in (edits, generations)}
            rounds.append(found)
            print("   ".join(f"{name} {mean:.2f} rows a forward" for name, mean in found.items()), flush=True)
    ratio = median(each["edits"] / each["generations"] for each in rounds)
    print(f"median ratio {ratio:.3f}")
    if args.json:
        report = {"generator": machine(), "served": served.entry, "rounds": rounds, "median_ratio": ratio}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What the order of service does to latency: the service's own scheduler beside two others, simulated.

    python -m benchmarks.scheduling [--seconds 1000] [--json FILE]

A forward takes as long as was measured for its size; nothing else takes time, and nothing is random but the arrivals
and what clients send. Request by request: one row to each waiting request in turn. First come: in order of arrival,
rows that are free going to who comes next. A minute of a processor, and the same figures on every machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from service.bench.report import percentile
from service.bench.workloads import BULK_IMAGES, BULK_STEPS, MIXED_IMAGES, MIXED_STEPS
from service.engine.batching import choose
from service.engine.request import Sample, SizeTime
from service.engine.scheduler import Scheduler, in_turn

TIMES = tuple(SizeTime(*pair) for pair in ((1, 0.061), (2, 0.097), (4, 0.155), (8, 0.274)))  # two slow cores
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
BEGUN = 20.0  # seconds before the first arrival that counts


class Order(Protocol):
    """Who steps next."""

    def add(self, samples: list[Sample]) -> None: ...
    def ready(self) -> int: ...
    def schedule(self, max_rows: int) -> list[Sample]: ...
    def update(self, stepped: list[Sample]) -> list[Sample]: ...


class SizeClasses(Scheduler):
    """The service's own."""

    def add(self, samples: list[Sample]) -> None:  # type: ignore[override]
        for sample in samples:
            super().add(sample)


class FirstCome:
    """Requests in order of arrival."""

    def __init__(self) -> None:
        self.requests: OrderedDict[int, dict[int, Sample]] = OrderedDict()
        self.left: dict[int, int] = {}

    def add(self, samples: list[Sample]) -> None:
        self.requests[samples[0].request] = {sample.id: sample for sample in samples}
        self.left |= {sample.id: len(sample.sigmas) for sample in samples}

    def ready(self) -> int:
        return len(self.left)

    def schedule(self, max_rows: int) -> list[Sample]:
        rows = itertools.chain.from_iterable(samples.values() for samples in self.requests.values())
        return list(itertools.islice(rows, max_rows))

    def update(self, stepped: list[Sample]) -> list[Sample]:
        finished = []
        for sample in stepped:
            self.left[sample.id] -= 1
            if not self.left[sample.id]:
                finished.append(sample)
                del self.left[sample.id], self.requests[sample.request][sample.id]
                if not self.requests[sample.request]:
                    del self.requests[sample.request]
        return finished


class RequestByRequest(FirstCome):
    """A row to each request in turn, however much it asked for."""

    def schedule(self, max_rows: int) -> list[Sample]:
        batch = list(itertools.islice(in_turn(iter(samples.values()) for samples in self.requests.values()), max_rows))
        for request in OrderedDict.fromkeys(sample.request for sample in batch):
            self.requests.move_to_end(request)
        return batch


ORDERS: dict[str, Callable[[], Order]] = {
    "size classes": SizeClasses,
    "request by request": RequestByRequest,
    "first come": FirstCome,
}

# name -> requests a second (0: a closed loop), clients of that loop, whether singles only, endless bulk requests
SCENES: dict[str, tuple[float, int, bool, int]] = {
    "mixed, 60 % load": (4.4, 0, False, 0),
    "mixed, 75 % load": (5.5, 0, False, 0),
    "mixed, 16 clients that wait": (0, 16, False, 0),
    "singles beside 2 bulk requests": (1, 0, True, 2),
    "singles beside 50 bulk requests": (1, 0, True, 50),
    "singles at half load beside 2 bulk requests": (15, 0, True, 2),
    "mixed, 60 % load, beside 2 bulk requests": (4.4, 0, False, 2),
}


class Simulation:
    """One order, one scene."""

    def __init__(self, order: Order, scene: tuple[float, int, bool, int], seconds: float) -> None:
        self.order, self.seconds, self.now = order, seconds, 0.0
        self.rate, self.clients, self.singles, self.bulk = scene
        self.rng = random.Random(0)
        self.numbers = itertools.count()
        self.waiting: dict[int, tuple[float, int, bool]] = {}  # request -> arrival, images left, whether bulk
        self.latencies: list[float] = []

    def ask(self, arrived: float, images: int, steps: int, bulk: bool = False) -> None:
        request = next(self.numbers)
        self.waiting[request] = arrived, images, bulk
        sigmas = (1.0,) * steps
        numbered = ((next(self.numbers), request) for _ in range(images))
        self.order.add(
            [
                Sample(
                    id=i, request=r, client="", model="", seed=0, class_label=None, sigmas=sigmas,
                    request_steps=images * steps,
                )
                for i, r in numbered
            ]
        )  # fmt: skip

    def draw(self) -> tuple[int, int]:
        return (1, 1) if self.singles else (self.rng.choice(MIXED_IMAGES), self.rng.choice(MIXED_STEPS))

    def arrivals(self) -> Iterator[float]:
        time = 0.0
        while self.rate and (time := time + self.rng.expovariate(self.rate)) < self.seconds:
            yield time
        while True:
            yield float("inf")

    def run(self) -> dict[str, float | None]:
        """Milliseconds, of requests that are not bulk; None where none was answered."""
        for _ in range(self.clients):
            self.ask(0.0, *self.draw())
        for _ in range(self.bulk):
            self.ask(0.0, BULK_IMAGES, BULK_STEPS, bulk=True)
        arrivals = self.arrivals()
        following = next(arrivals)
        while self.now < self.seconds:
            if not self.waiting:
                self.now = following
            while following <= self.now < self.seconds:
                self.ask(following, *self.draw())
                following = next(arrivals)
            if self.waiting:
                self.step()
        found = sorted(self.latencies)
        return {name: round(1000 * percentile(found, share)) if found else None for name, share in SHARES.items()}

    def step(self) -> None:
        size = choose(self.order.ready(), TIMES)
        batch = self.order.schedule(size.size)
        self.now += size.seconds
        for sample in self.order.update(batch):
            arrived, images, bulk = self.waiting.pop(sample.request)
            if images > 1:
                self.waiting[sample.request] = arrived, images - 1, bulk
                continue
            if not bulk and arrived > BEGUN:
                self.latencies.append(self.now - arrived)
            if bulk:
                self.ask(self.now, BULK_IMAGES, BULK_STEPS, bulk=True)
            elif self.clients:
                self.ask(self.now, *self.draw())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1000.0, help="simulated, of every scene")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for scene, settings in SCENES.items():
        print(scene)
        for name, order in ORDERS.items():
            row = found.setdefault(scene, {})[name] = Simulation(order(), settings, args.seconds).run()
            print(
                f"  {name:<20}"
                + "  ".join(f"{key} {'none' if value is None else f'{value} ms'}" for key, value in row.items()),
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"seconds": args.seconds, "scenes": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()

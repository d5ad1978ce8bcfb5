"""Tables of what `benchmarks.compare` measured. Ratios are medians over rounds, each within one round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.peers.systems import ONESTEP, PIPELINE


@dataclass
class Series:
    """One system in one workload: a result for each round, as `Result.to_json` gives them."""

    system: str
    settings: str = ""
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def add(self, settings: str, result: dict[str, Any]) -> None:
        """The result of one more round."""
        self.settings = settings
        self.rounds.append(result)

    def figures(self, key: str) -> list[float]:
        """A figure in each round."""
        return [each[key] for each in self.rounds]

    def middle(self, key: str) -> float:
        """The median of a figure over the rounds."""
        return median(self.figures(key))

    def latencies(self, key: str) -> list[float] | None:
        """A latency in each round; None when a round had no right answer."""
        found = [each["latency"][key] for each in self.rounds if each.get("latency")]
        return found if len(found) == len(self.rounds) else None

    def latency(self, key: str) -> float | None:
        """The median of a latency over the rounds; None when a round had no right answer."""
        found = self.latencies(key)
        return median(found) if found else None

    def failures(self) -> float:
        """The share of requests that were refused, timed out or not sent."""
        sent = sum(each["sent"] for each in self.rounds)
        return 1 - sum(each["ok"] for each in self.rounds) / sent if sent else 0.0


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median over rounds of the ratio within each; infinite where the denominator is nothing."""
    return median(a / b if b else float("inf") for a, b in zip(numerator, denominator, strict=True))


def closed_table(workload: str, rows: Sequence[Series]) -> str:
    """Throughput when as many clients ask as are allowed."""
    ours = next(row for row in rows if row.system == ONESTEP)
    lines = [
        f"### {workload}: closed loop",
        "",
        "| system | settings | images/s | image-steps/s | Onestep is | p50 ms | p99 ms | failed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        figures = (each.figures("image_steps_per_second") for each in (ours, row))
        times = "" if row is ours else f"{ratio(*figures):.2f}x"
        rest = " | | " if row.system == PIPELINE else _latencies(row)
        images, steps = row.middle("images_per_second"), row.middle("image_steps_per_second")
        lines.append(f"| {row.system} | {row.settings} | {images:.1f} | {steps:.1f} | {times} | {rest} |")
    return "\n".join(lines) + "\n"


def open_table(workload: str, rate: float, rows: Sequence[Series]) -> str:
    """Latency at one offered load."""
    ours = next(row for row in rows if row.system == ONESTEP)
    lines = [
        f"### {workload}: open loop, {rate:.1f} requests/s offered",
        "",
        "| system | settings | answered/s | its p99 over Onestep's | p50 ms | p99 ms | failed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        mine, theirs = ours.latencies("p99"), row.latencies("p99")
        times = "" if row is ours or not mine or not theirs else f"{ratio(theirs, mine):.2f}x"
        answered = row.middle("requests_per_second")
        lines.append(f"| {row.system} | {row.settings} | {answered:.1f} | {times} | {_latencies(row)} |")
    return "\n".join(lines) + "\n"


def _latencies(row: Series) -> str:
    p50, p99 = row.latency("p50"), row.latency("p99")
    texts = ["none" if each is None else f"{each:.0f}" for each in (p50, p99)]
    return f"{texts[0]} | {texts[1]} | {row.failures():.1%}"

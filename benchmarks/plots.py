"""Plots of what `benchmarks.run` measured: `python -m benchmarks.plots load-N-cores.json`.

Beside the results it writes `...-latency.svg`, latency against offered load, and `...-stages.svg`, where the mean
request spends its time, each with a panel for every workload. Needs matplotlib, which the `bench` extra brings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")  # before pyplot, which would look for a screen
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Results = list[dict[str, Any]]  # of `Result.to_json`, all of one workload

PERCENTILES: Final = {"p50": "#1b9e77", "p95": "#7570b3", "p99": "#d95f02"}
STAGES: Final = {
    "queue": "#e6ab02",
    "inference": "#1b9e77",
    "encode": "#7570b3",
    "rest of the server": "#e7298a",
    "outside": "#999999",
}
STYLE: Final = {
    "svg.fonttype": "none",  # text stays text: small files
    "svg.hashsalt": "onestep",  # equal results give equal files
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "grid.alpha": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
PANEL: Final = (4.4, 2.9)  # inches


def write_plots(target: Path) -> list[Path]:
    """Draws the results in `target` into files beside it, and returns those.

    Raises OSError, and ValueError for a file without results.
    """
    report = json.loads(target.read_text(encoding="utf-8"))
    workloads: dict[str, Results] = {}
    for result in report.get("results", ()):
        workloads.setdefault(result["workload"], []).append(result)
    if not workloads:
        raise ValueError(f"{target} has no results")
    title = _title(report)
    kinds: tuple[tuple[str, str, Callable[[Axes, Results], None]], ...] = (
        ("latency", "Latency against offered load", draw_latency),
        ("stages", "Where the mean request spends its time", draw_stages),
    )
    with plt.rc_context(STYLE):
        return [
            _write(target.with_name(f"{target.stem}-{kind}.svg"), f"{words}\n{title}", workloads, draw)
            for kind, words, draw in kinds
        ]


def _title(report: dict[str, Any]) -> str:
    machine, served = report.get("generator", {}), report.get("served") or {}
    words = (served.get("id"), served.get("dtype"), machine.get("cpu"), f"{machine.get('cores')} cores")
    return ", ".join(str(word) for word in words if word)


def _write(path: Path, title: str, workloads: dict[str, Results], draw: Callable[[Axes, Results], None]) -> Path:
    columns = min(2, len(workloads))
    rows = ceil(len(workloads) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * PANEL[0], rows * PANEL[1] + 0.7), squeeze=False, layout="constrained"
    )
    try:
        panels = list(axes.flat)
        for panel, (name, results) in zip(panels, workloads.items(), strict=False):
            panel.set_title(name, fontweight="bold")
            draw(panel, results)
        for panel in panels[len(workloads) :]:
            panel.set_axis_off()
        figure.suptitle(title, fontsize=10)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        figure.savefig(path, metadata={"Date": None})
    finally:
        plt.close(figure)
    return path


def draw_latency(panel: Axes, results: Results) -> None:
    """Percentiles of the open loops over their rates; a line at what the closed loop did."""
    offered = sorted((each for each in results if each["loop"] == "open"), key=lambda each: each["rate"])
    answered = [each for each in offered if each["latency"]]
    for name, colour in PERCENTILES.items():
        rates, times = [each["rate"] for each in answered], [each["latency"][name] for each in answered]
        panel.plot(rates, times, marker="o", markersize=3.5, linewidth=1.4, color=colour, label=name)
    most = max((each["requests_per_second"] for each in results if each["loop"] == "closed"), default=None)
    if most is not None:
        panel.axvline(most, color="black", linestyle=":", linewidth=1.2, label="saturated, closed loop")
    panel.set_xlim(left=0)
    if answered:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    panel.set_xlabel("offered requests/s")
    panel.set_ylabel("ms from the intended sending")


def draw_stages(panel: Axes, results: Results) -> None:
    """Mean milliseconds of each stage, stacked; a bar for each offered load, the last one of the closed loop."""
    offered = sorted((each for each in results if each["loop"] == "open"), key=lambda each: each["rate"])
    closed = [each for each in results if each["loop"] == "closed"]
    most = max((each["requests_per_second"] for each in closed), default=float("inf"))
    below = [each for each in offered if each["rate"] <= most]  # above, the queue only says how long the run was
    shown = [each for each in (*below, *closed) if each["latency"]]
    parts = [parts_of(each) for each in shown]
    bottom = [0.0] * len(shown)
    for stage, colour in STAGES.items():
        heights = [part[stage] for part in parts]
        panel.bar(range(len(shown)), heights, bottom=bottom, width=0.7, color=colour, label=stage)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    panel.set_xticks(range(len(shown)), [_load(each) for each in shown], rotation=30, ha="right")
    panel.set_xlabel("offered requests/s")
    panel.set_ylabel("mean ms")


def parts_of(result: dict[str, Any]) -> dict[str, float]:
    """Mean milliseconds of each of `STAGES`; together they are the mean latency, if the server told its total."""
    means = {name: times["mean"] for name, times in result["stages"].items() if times}
    known = {name: means.get(name, 0.0) for name in STAGES}
    total = sum(known[name] for name in ("queue", "inference", "encode"))
    known["rest of the server"] = max(0.0, means.get("total", total) - total)
    return known


def _load(result: dict[str, Any]) -> str:
    if result["loop"] == "open":
        return f"{result['rate']:.3g}"
    clients = result["clients"]
    return f"{clients} client{'s' * (clients != 1)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="such as benchmarks/results/load-2-cores.json")
    for path in write_plots(parser.parse_args(arguments).file):
        print(f"written: {path}")


if __name__ == "__main__":
    main()

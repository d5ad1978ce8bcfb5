"""`benchmarks/plots.py` draws what `benchmarks/run.py` writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]


def times(mean: float) -> dict[str, float]:
    return {"count": 9, "mean": mean, "p50": mean, "p90": mean, "p95": 2 * mean, "p99": 3 * mean, "max": 4 * mean}


def result(workload: str, rate: float | None, *, answered: bool = True) -> dict[str, Any]:
    stages = {"queue": times(5), "inference": times(10), "encode": times(1), "total": times(17), "outside": times(2)}
    return {
        "workload": workload,
        "loop": "closed" if rate is None else "open",
        "clients": 16 if rate is None else None,
        "rate": rate,
        "requests_per_second": 40.0,
        "latency": times(19) if answered else None,
        "stages": stages if answered else {},
    }


@pytest.fixture
def report(tmp_path: Path) -> Path:
    results = [result(name, rate) for name in ("singles", "mixed", "edits") for rate in (None, 20.0, 36.0, 48.0)]
    machine = {"cpu": "A processor", "cores": 2}
    target = tmp_path / "load-2-cores.json"
    target.write_text(json.dumps({"generator": machine, "served": {"id": "avatars-32"}, "results": results}))
    return target


def test_plots_are_written_beside_the_results(report: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks.plots", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    plots = sorted(report.parent.glob("*.svg"))
    assert [plot.name for plot in plots] == ["load-2-cores-latency.svg", "load-2-cores-stages.svg"]
    latency, stages = (" ".join(ElementTree.parse(plot).getroot().itertext()) for plot in plots)
    for text in ("singles", "mixed", "edits", "p50", "p95", "p99", "offered requests/s", "A processor", "avatars-32"):
        assert text in latency
    for text in ("queue", "inference", "encode", "outside", "16 clients", "36"):
        assert text in stages
    assert max(plot.stat().st_size for plot in plots) < 100_000


def test_stages_add_up_to_the_mean_latency() -> None:
    from benchmarks.plots import parts_of

    assert sum(parts_of(result("mixed", 20.0)).values()) == 19


def test_a_load_that_was_not_answered_leaves_a_gap_and_a_file_without_results_is_refused(report: Path) -> None:
    from benchmarks.plots import write_plots

    content = json.loads(report.read_text())
    content["results"] = [result("mixed", None), result("mixed", 20.0, answered=False)]
    report.write_text(json.dumps(content))
    assert len(write_plots(report)) == 2
    report.write_text("{}")
    with pytest.raises(ValueError, match="no results"):
        write_plots(report)

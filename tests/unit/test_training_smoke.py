"""The whole recipe in miniature, as `make train-smoke` runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from training.train import ORDER

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_recipe_runs_from_rendering_to_a_served_picture(tmp_path: Path) -> None:
    """Renders, trains, tunes, every later phase, evaluates, saves and serves."""
    done = subprocess.run(
        [sys.executable, "-m", "training.smoke", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with Image.open(tmp_path / "served.png") as picture:
        assert picture.size == (16, 16)
    result = json.loads((tmp_path / "results.json").read_text())
    assert set(result["rows"]) == {"1 step", "2 steps", "teacher, 18-step Heun"}
    floor = result["real"]["fd"]
    assert all(row["fd"] > floor > 0 for row in result["rows"].values())
    log = [json.loads(line) for line in done.stdout.splitlines() if '"from"' in line]
    assert [line["phase"] for line in log] == ["pretrain", "pretrain", "pair", *ORDER[1:]]
    assert 0 < log[1]["from"] < log[1]["to"]

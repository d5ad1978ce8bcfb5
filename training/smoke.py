"""The whole recipe in miniature, from rendering to a served picture. Under five minutes on a CPU.

    python -m training.smoke --out out/train-smoke

Its pictures are no good; what it shows is that every part works with the next, as in a real run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from training import evaluate, export, pairs, train

HERE = Path(__file__).parent
SIZE, TRAIN, HELDOUT, N = 16, 200, 40, 100
NAME = "smoke"


def say(text: str, began: float) -> None:
    """One line of progress."""
    print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)


def render(data: Path) -> None:
    """Installs the pinned packages if need be, and renders two splits."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise SystemExit("rendering needs node 18 or newer and npm")
    if not (HERE / "node_modules").is_dir():
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=HERE, check=True)
    for split, count in (("train", TRAIN), ("heldout", HELDOUT)):
        options = ["--out", str(data), "--size", str(SIZE), "--split", split, "--count", str(count)]
        subprocess.run([node, str(HERE / "render.mjs"), *options], check=True)


def serve_one(folder: Path, out: Path) -> bytes:
    """Starts the service on a free port with the model and fetches one PNG from it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONESTEP_")}
    command = [sys.executable, "-m", "service", "serve", "--model", f"{NAME}={folder}", "--port", str(port)]
    with (out / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_ready(process, f"http://127.0.0.1:{port}/readyz", out / "serve.log")
            url = f"http://127.0.0.1:{port}/v1/images/{NAME}/thumbs/1.png?steps=2"
            with fetch(url, timeout=60) as answer:
                picture: bytes = answer.read()
        finally:
            process.terminate()
            process.wait(30)
    if not picture.startswith(b"\x89PNG"):
        raise SystemExit("the service did not answer with a PNG")
    return picture


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float = 120) -> None:
    """Returns when the service is ready; ends the program with its log when it fails."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            with fetch(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise SystemExit(f"the service did not become ready:\n{log.read_text()}")


def fetch(url: str, timeout: float) -> Any:
    """Opens a URL of this machine, whatever proxy the environment names."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout)


def main(argv: list[str] | None = None) -> None:
    """Runs everything; raises or exits non-zero where a part fails."""
    parser = argparse.ArgumentParser(prog="training.smoke", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/train-smoke"))
    out: Path = parser.parse_args(argv).out.absolute()
    began = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    data, run, folder = out / "data" / str(SIZE), out / "run", out / NAME
    render(data)
    say("rendered", began)
    common = ["--preset", "smoke", "--data", str(data), "--run", str(run), "--device", "cpu"]
    train.main([*common, "--phase", "pretrain", "--seconds", "5"])  # stopped on the way, to go on after it
    train.main([*common, "--phase", "pretrain"])
    say("pre-trained", began)
    teacher = ["--teacher", str(run / "pretrain.safetensors"), "--preset", "smoke"]
    pairs.main([*teacher, "--count", "50", "--batch", "50", "--out", str(run / "pairs.safetensors"), "--device", "cpu"])
    for phase in (*train.BY_PAIRS[1:], *train.ORDER[1:]):
        train.main([*common, "--phase", phase])
        say(f"phase {phase} done", began)
    export.main(["--preset", "smoke", "--weights", str(run / "finish.safetensors"), "--out", str(folder)])
    arguments = ["--pipeline", str(folder), "--data", str(data), "--out", str(out / "results.json")]
    arguments += [*teacher, "--cache", str(out / "cache")]
    arguments += ["--n", str(N), "--steps", "1", "2", "--epochs", "3", "--device", "cpu"]
    evaluate.main([*arguments, "--sheet", str(out / "sheet.png")])
    rows = json.loads((out / "results.json").read_text())["rows"]
    say("evaluated: " + ", ".join(f"{name} FD {row['fd']}" for name, row in rows.items()), began)
    (out / "served.png").write_bytes(serve_one(folder, out))
    say("served a picture", began)


if __name__ == "__main__":
    main()

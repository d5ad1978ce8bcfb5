"""Every command of the README does what the README says, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Server, free_port

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"

# Commands with a test of their own below, and those that are this test run itself (.ci/run calls them).
SERVERS = {"make serve"}
CONTAINERS = ("docker ",)
DEVELOPMENT = {"make test", "make lint"}


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command of the shell blocks, continuation lines joined to theirs."""
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [re.sub(r" {2,}", " ", line) for line in text.splitlines() if line and not line.startswith("#")]


def client_commands() -> list[str]:
    apart = SERVERS | DEVELOPMENT
    return [command for command in commands() if command not in apart and not command.startswith(CONTAINERS)]


def quick_or_slow(command: str) -> object:
    """The command as a test's parameter: those that make many images or measure are left to CI."""
    slow = "-n 100" in command or command.startswith("onestep bench")
    return pytest.param(command, marks=pytest.mark.slow) if slow else command


Run = Callable[[str, Server, Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(server_environment: dict[str, str]) -> Run:
    """Runs one command as a person would type it, in an empty folder, with the server's own port."""
    environment = {name: value for name, value in server_environment.items() if not name.lower().endswith("_proxy")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return partial(run_in, environment)


def run_in(environment: dict[str, str], command: str, server: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace(ADDRESS, server.url)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.parametrize("command", [quick_or_slow(each) for each in client_commands()])
def test_command_works(command: str, server: Server, run: Run, tmp_path: Path) -> None:
    """It succeeds, and what it writes is what its name says."""
    done = run(command, server, tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    if " -o " in command or " --npz " in command:
        assert len(written) == 1
    if " --out " in command:
        assert len([path for path in written if path.suffix == ".png"]) == 8
    for path in written:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
                assert "manifest.json" in archive.namelist()
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (100, 32, 32, 3))
                assert arrays["arr_1"].shape == (100,)
        elif path.suffix in {".png", ".webp"}:
            with Image.open(path) as image:
                image.load()
                assert image.format == path.suffix[1:].upper()
                assert max(high - low for low, high in image.convert("RGB").getextrema()) > 64
    if "text/event-stream" in command:
        assert re.findall("^event: (.*)", done.stdout, re.MULTILINE) == ["queued", *["step"] * 3, "image", "done"]
    elif "/v1/generate" in command and " -o " not in command:
        answer = json.loads(done.stdout)
        assert [image["seed"] for image in answer["images"]] == [7, 8, 9, 10]


@pytest.mark.parametrize("program", blocks("python"))
def test_python_example_works(program: str, server: Server, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(program.replace(ADDRESS, server.url))
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, timeout=120)
    with Image.open(tmp_path / "persona.png") as image:
        assert image.size == (32, 32)


def test_html_example_names_a_picture(server: Server, run: Run, tmp_path: Path) -> None:
    (page,) = blocks("html")
    source = re.search(r'src="([^"]+)"', page)
    assert source is not None
    run(f"curl --fail -o page.png '{source[1]}'", server, tmp_path)
    with Image.open(tmp_path / "page.png") as image:
        assert image.format == "PNG"


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(SERVERS))
def test_serving_from_a_checkout(command: str, server_environment: dict[str, str], run: Run, tmp_path: Path) -> None:
    """The quick start, its two commands one after the other, and a clean end by Ctrl-C."""
    assert command in commands()
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command.split(), f"ARGS=--port {port}"],
            cwd=ROOT,
            env=server_environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", tmp_path / "log")
    try:
        server.wait_ready(300)
        folder = tmp_path / "client"
        folder.mkdir()
        run(next(line for line in commands() if line.startswith("curl")), server, folder)
        with Image.open(folder / "a.png") as image:
            assert image.format == "PNG"
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
        end = time.monotonic() + 10
        while time.monotonic() < end and group_lives(process.pid):
            time.sleep(0.1)
        assert not group_lives(process.pid)
    finally:
        server.stop()


def group_lives(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def has_container_engine() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, timeout=30).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_container_engine(), reason="no container engine answers here")
def test_container_commands() -> None:
    """The image builds and its server becomes healthy under compose."""
    subprocess.run(["docker", "build", "-t", "onestep:0.1.0", "."], cwd=ROOT, check=True, timeout=1800)
    try:
        subprocess.run(["docker", "compose", "up", "--detach", "--wait"], cwd=ROOT, check=True, timeout=300)
    finally:
        subprocess.run(["docker", "compose", "down", "--volumes"], cwd=ROOT, check=True, timeout=120)


def test_development_commands_are_what_ci_runs() -> None:
    """`make test` and `make lint` are run by .ci/run, of which this test is a part."""
    assert set(commands()) >= DEVELOPMENT
    assert "\nmake lint test\n" in (ROOT / ".ci" / "run").read_text()

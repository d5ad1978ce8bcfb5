"""`onestep bench URL` as a person runs it: the table, the file, the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.exits import ExitCode
from tests.bench_servers import Asked, SmallServer, response, right
from tests.conftest import Server, free_port

SHORT = ("--seconds", "1.5", "--warm-up", "0.5", "--load", "0.5")


@pytest.fixture(scope="module")
def toy_url() -> Iterator[str]:
    """A server that wants the key `secret`, and takes too long for every picture."""
    command = [sys.executable, "-m", "tests.api.toy_server", "api_keys=secret", "log_level=error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


@pytest.fixture
def environment(server_environment: dict[str, str]) -> dict[str, str]:
    return dict(server_environment)


def bench(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", "bench", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_it_measures_a_running_service(server: Server, environment: dict[str, str], tmp_path: Path) -> None:
    """A row for saturation and one for each load in the table, and the same in the file with the conditions."""
    file = tmp_path / "found.json"
    pid = str(server.process.pid)
    done = bench(environment, server.url, "--workload", "singles", *SHORT, "--pid", pid, "--json", str(file))
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    first, _, title, heading, saturated, offered, stages = done.stdout.splitlines()
    assert first.startswith(f"{server.url}: avatars-32, cpu, float32, ")
    assert title == "singles (one image, one step)"
    assert heading.split("  ")[0] == "load"
    assert "clients that wait" in saturated
    assert "arrivals/s" in offered
    assert all(stage in stages for stage in ("queue", "inference", "encode", "outside"))

    report = json.loads(file.read_text())
    assert {"cpu", "cores", "versions", "load_average"} <= set(report["generator"])
    assert report["served"]["id"] == "avatars-32"
    closed, open_ = report["results"]
    assert (closed["loop"], open_["loop"]) == ("closed", "open")
    assert open_["rate"] == closed["requests_per_second"] / 2
    for result in (closed, open_):
        assert (result["workload"], result["failures"]) == ("singles", {})
        assert 0 < result["latency"]["p50"] <= result["latency"]["p95"] <= result["latency"]["p99"]
        assert result["ok"] == result["sent"] == result["latency"]["count"]
        assert result["server_cpu_seconds"] > 0
    assert closed["image_steps_per_second"] == closed["images_per_second"] == closed["requests_per_second"]


def test_mixes_of_work_are_answered(server: Server, environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    names = ("mixed", "edits")
    chosen = [word for name in names for word in ("--workload", name)]
    arguments = ("--seconds", "1", "--warm-up", "0", "--load", "", "--clients", "2", "--json", str(file))
    done = bench(environment, server.url, *chosen, *arguments)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    results = json.loads(file.read_text())["results"]
    assert [result["workload"] for result in results] == list(names)
    assert [result["failures"] for result in results] == [{}] * 2


def test_another_server_with_this_route_is_measured_too(environment: dict[str, str]) -> None:
    async def answer(asked: Asked) -> bytes:
        return response(b"{}", "404 Not Found") if asked.line.startswith("GET") else await right(asked)

    with SmallServer(answer) as other:
        done = bench(environment, other.url, "--seconds", "0.3", "--warm-up", "0", "--load", "0.5")
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert "does not describe its model" in done.stdout


def test_a_server_that_is_not_there(environment: dict[str, str]) -> None:
    done = bench(environment, f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (ExitCode.REMOTE, "")
    assert done.stderr.startswith("onestep bench: the server does not answer")


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = bench(environment, f"http://127.0.0.1:{free_port()}", "--json", str(tmp_path / "no" / "found.json"))
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.endswith("found.json cannot be written\n")


def test_a_folder_is_no_file(environment: dict[str, str], tmp_path: Path) -> None:
    done = bench(environment, f"http://127.0.0.1:{free_port()}", "--json", str(tmp_path))
    assert (done.returncode, done.stderr) == (ExitCode.USAGE, f"onestep bench: --json: {tmp_path} cannot be written\n")


def test_a_server_that_wants_a_key(environment: dict[str, str], toy_url: str) -> None:
    done = bench(environment, toy_url)
    assert (done.returncode, done.stdout) == (ExitCode.REMOTE, "")
    assert done.stderr == "onestep bench: the server wants a key: set ONESTEP_API_KEYS\n"


def test_the_first_key_is_sent_and_a_service_that_answers_nothing_is_told(
    environment: dict[str, str], toy_url: str
) -> None:
    keys = environment | {"ONESTEP_API_KEYS": "secret,other"}
    done = bench(keys, toy_url, "--seconds", "0.5", "--warm-up", "0", "--timeout", "0.2", "--clients", "1")
    assert done.returncode == ExitCode.REMOTE
    assert "timeout" in done.stdout
    assert done.stderr == "onestep bench: no request was answered rightly\n"


def test_a_model_that_it_does_not_have(environment: dict[str, str], server: Server) -> None:
    done = bench(environment, server.url, "--model", "no-such")
    assert (done.returncode, done.stdout) == (ExitCode.REMOTE, "")
    assert done.stderr == "onestep bench: the server has no model no-such; it has avatars-32\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("127.0.0.1:8000",),
        ("http://127.0.0.1", "--workload", "none"),
        ("http://127.0.0.1", "--seconds", "0"),
        ("http://127.0.0.1", "--seconds", "nan"),
        ("http://127.0.0.1", "--load", "0.5,x"),
        ("http://127.0.0.1", "--clients", "-1"),
        ("http://127.0.0.1", "--classes", "many"),
    ],
    ids=lambda arguments: " ".join(arguments) or "none",
)
def test_wrong_arguments(environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    done = bench(environment, *arguments)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "Traceback" not in done.stderr

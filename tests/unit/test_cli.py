"""The command line: quick, and plain about what is wrong."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service import __version__
from service.exits import ExitCode
from service.settings import Settings, flag_of, variable_of

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("ONESTEP_")}


def onestep(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=CLEAN | {"COLUMNS": "100"} | environ,
        check=False,
    )


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    """Of the processor, not of the clock: the machine may be busy with other tests."""
    best = float("inf")
    for _ in range(3):
        before = os.times()
        done = onestep("--help")
        after = os.times()
        assert done.returncode == 0
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        best = min(best, spent)
    assert best < 0.5


def test_help_lists_the_commands() -> None:
    text = onestep("--help").stdout
    for command in ("serve", "models", "convert"):
        assert re.search(rf"^ +{command} +\w", text, re.MULTILINE)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from service.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert set() == loaded & {"torch", "diffusers", "numpy", "fastapi", "pydantic", "PIL", "prometheus_client"}


def test_serving_never_imports_torch() -> None:
    """Nothing that `onestep serve` loads in its own process does."""
    names = ("service.serve", "service.api.server", "service.api.app", "service.launch", "service.models.places")
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set() == set(done.stdout.split()) & {"torch", "diffusers", "transformers"}


def test_the_engine_is_started_before_what_only_http_needs_is_imported() -> None:
    """Imports of both processes go on side by side; a second later, readiness would be a second later."""
    code = """
import asyncio, os, sys
async def spawn(*command, **options):
    print("spawned", *sys.modules, flush=True)
    os._exit(0)
asyncio.create_subprocess_exec = spawn
from service.cli import main
main(["serve", "--port", "0"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    spawned, *modules = done.stdout.split()
    assert spawned == "spawned"
    assert set() == {"fastapi", "uvicorn", "PIL", "service.api.app", "service.api.server"} & set(modules)


def test_help_of_serve_names_every_setting_with_its_variable_default_and_sentence() -> None:
    text = " ".join(onestep("serve", "--help").stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"{flag_of(name)} " in text or f"{flag_of(name)}," in text
        assert f"{field.description} [{variable_of(name)}" in re.sub(r"(?<=[a-z])- (?=[a-z])", "-", text)
    assert "ONESTEP_MAX_STEP_TIME, default 1]" in text
    assert "--no-batch-invariant" in text


def test_the_version_is_told() -> None:
    done = onestep("--version")
    assert (done.returncode, done.stdout) == (0, f"onestep {__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("dance",), ("--dance",), ("serve", "--dance"), ("serve", "--por", "1")])
def test_what_is_unknown_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    done = onestep(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_stops_the_start_with_a_sentence() -> None:
    done = onestep("serve", "--port", "70000", ONESTEP_MAX_BATCHSIZE="3")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.splitlines() == [
        "onestep serve: ONESTEP_MAX_BATCHSIZE is not a setting of this service; did you mean ONESTEP_MAX_BATCH_SIZE?",
        "onestep serve: port (--port, ONESTEP_PORT) is wrong: Input should be less than or equal to 65535.",
    ]


def test_a_model_that_cannot_be_served_stops_the_start_before_a_port_is_bound(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        probe.listen()
        taken = probe.getsockname()[1]  # would be CANNOT_LISTEN if it were tried
        done = onestep("serve", "--port", str(taken), "--model", str(tmp_path))
    assert done.returncode == ExitCode.MODEL
    (line,) = done.stderr.splitlines()
    assert line.startswith("onestep serve: ")
    assert str(tmp_path) in line


def test_a_taken_port_stops_the_start_with_a_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = onestep("serve", "--port", str(other.getsockname()[1]))
    assert done.returncode == ExitCode.CANNOT_LISTEN
    assert re.fullmatch(r"onestep serve: cannot listen on 127.0.0.1 port \d+: .*in use\n", done.stderr)


def test_exit_codes_differ_and_have_a_sentence() -> None:
    assert len({int(code) for code in ExitCode}) == len(ExitCode)
    assert all(code.meaning.endswith(".") for code in ExitCode)


def test_sigterm_during_the_imports_of_serve_ends_it_well() -> None:
    """In a container nothing but a handler would hear it."""
    code = """
import os, signal, sys
class Terminating:
    def find_spec(self, name, path=None, target=None):
        if name == "service.settings":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Terminating())
from service.cli import main
main(["serve", "--port", "0"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")


def test_sigterm_while_the_model_loads_ends_it_well_and_leaves_no_process(tmp_path: Path) -> None:
    import httpx
    import psutil

    from tests.conftest import free_port

    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", str(port)],
        env=CLEAN | {"XDG_CACHE_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 30
        children: list[psutil.Process] = []
        while not children:
            assert time.monotonic() < end
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.02)
        while True:
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False).status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < end
        process.terminate()
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == ExitCode.OK, log
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert "Traceback" not in log

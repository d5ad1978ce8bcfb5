"""`onestep generate --server` writes the files that it writes without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.exits import ExitCode
from tests.conftest import Server, StartServer, free_port
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", labels={"0": "cat", "1": "Great Owl"})


@pytest.fixture(scope="module")
def tiny(start_server: StartServer, model: Path) -> Server:
    """A server whose requests may be small only."""
    return start_server(
        "--model", str(model), "--threads", "1", "--max-client-batch-size", "5", "--max-client-image-steps", "6"
    )


@pytest.fixture
def generate(server_environment: dict[str, str]) -> object:
    def run(*arguments: str, code: int = 0, **environ: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "service", "generate", *arguments],
            env=server_environment | environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stderr

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("--class", "great-owl", "--steps", "2"),
        pytest.param(("--timesteps", "22,0"), marks=pytest.mark.slow),
    ],
)
def test_same_files(tiny: Server, model: Path, generate, tmp_path: Path, chosen: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    """Byte for byte, whatever number of requests it takes; what is there is not made again."""
    here, there = tmp_path / "here", tmp_path / "there"
    generate("--model", str(model), "-n", "12", "--seed", "3", *chosen, "--out", str(here), ONESTEP_THREADS="1")
    generate("--server", tiny.url, "-n", "12", "--seed", "3", *chosen, "--out", str(there))
    assert files(here) == files(there)
    assert len(files(there)) == 12
    lost = next(iter(sorted(there.iterdir())))
    times = {path: path.stat().st_mtime_ns for path in there.iterdir() if path != lost}
    lost.unlink()
    generate("--server", tiny.url, "-n", "12", "--seed", "3", *chosen, "--out", str(there))
    assert files(here) == files(there)
    assert times == {path: path.stat().st_mtime_ns for path in there.iterdir() if path != lost}


@pytest.mark.parametrize("by_server", [pytest.param(False, marks=pytest.mark.slow), True])
def test_images_of_other_steps_are_not_taken_for_those_of_this_run(
    tiny: Server,
    model: Path,
    generate,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    by_server: bool,
) -> None:
    """A folder of one-step images is no answer to a wish for two steps; nothing in it is touched."""
    target = ("-n", "2", "--out", str(tmp_path / "out"))
    source = ("--server", tiny.url) if by_server else ("--model", str(model))
    generate(*source, *target)
    before = files(tmp_path / "out")
    said = generate(*source, *target, "--steps", "2", code=ExitCode.USAGE)
    assert "is no image of this model and these steps" in said
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize("by_server", [False, True])
def test_a_target_that_cannot_be_written_is_said_in_a_sentence(
    tiny: Server,
    model: Path,
    generate,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    by_server: bool,
) -> None:
    (tmp_path / "file").touch()
    source = ("--server", tiny.url) if by_server else ("--model", str(model))
    said = generate(*source, "--out", str(tmp_path / "file" / "out"), code=ExitCode.USAGE)
    assert said.splitlines()[-1].startswith(f"onestep generate: {tmp_path / 'file'}")
    assert "Traceback" not in said
    said = generate(*source, "--npz", str(tmp_path / "file" / "x.npz"), code=ExitCode.USAGE)
    assert "Traceback" not in said


@pytest.mark.slow
def test_same_npz(tiny: Server, model: Path, generate, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The arrays are equal."""
    generate("--model", str(model), "-n", "7", "--npz", str(tmp_path / "here.npz"), ONESTEP_THREADS="1")
    generate("--server", tiny.url, "--model", "tiny", "-n", "7", "--npz", str(tmp_path / "there.npz"))
    with np.load(tmp_path / "here.npz") as here, np.load(tmp_path / "there.npz") as there:
        assert np.array_equal(here["arr_0"], there["arr_0"])
        assert np.array_equal(here["arr_1"], there["arr_1"])
    assert not os.path.exists(tmp_path / "there.npz.part")


def test_what_is_wrong_is_said(tiny: Server, generate, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """In one line, with an exit code for whose fault it is."""
    out = ("--out", str(tmp_path))
    assert "no such class" in generate("--server", tiny.url, "--class", "dragon", *out, code=ExitCode.USAGE)
    assert "num_inference_steps" in generate("--server", tiny.url, "--steps", "41", *out, code=ExitCode.USAGE)
    assert "404" in generate("--server", tiny.url, "--model", "other", *out, code=ExitCode.USAGE)
    assert "no address" in generate("--server", "http://[::1", *out, code=ExitCode.USAGE)
    nobody = generate("--server", f"http://127.0.0.1:{free_port()}", *out, code=ExitCode.REMOTE)
    assert len(nobody.strip().splitlines()) == 1

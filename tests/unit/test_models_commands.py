"""`onestep models` and `onestep convert` as a person runs them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from service.exits import ExitCode
from service.models.catalog import CATALOG
from service.models.commands import add_parsers
from tests.original_unet import OriginalUNet
from tests.tiny import tiny_model


def run(*words: str) -> int:
    """Parses and runs one command in this process; its exit code."""
    parser = argparse.ArgumentParser(prog="onestep")
    add_parsers(parser.add_subparsers(required=True))
    args = parser.parse_args(words)
    return int(args.run(args))


def test_models_lists_the_bundled_and_the_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == ExitCode.OK
    out = capsys.readouterr().out
    listed = [line.split()[0] for line in out.splitlines()[1:] if line]
    assert ["avatars-32", "avatars-64", *CATALOG] == listed[: len(CATALOG) + 2]
    row = next(line for line in out.splitlines() if line.startswith("ct-imagenet64"))
    assert "64 px" in row
    assert "106,0" in row


def test_models_describes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model(tmp_path / "mine", num_class_embeds=2, labels={"0": "Red Fox", "1": "dog"})
    assert run("models", str(folder)) == ExitCode.OK
    out = capsys.readouterr().out
    for text in (str(folder), "sha256:", "8 x 8, RGB", "0 Red Fox  (red-fox)", "1 dog\n"):
        assert text in out


def test_models_checks_all_and_fails_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model(tmp_path / "mine")
    (folder / "unet" / "config.json").unlink()
    assert run("models", str(folder), "avatars-32") == ExitCode.MODEL
    captured = capsys.readouterr()
    assert "unet/config.json: is missing." in captured.err
    assert "avatars-32" in captured.out


def test_convert_makes_a_folder_that_models_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = OriginalUNet([32, 64], 2, {1}, 8, True, 4)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    out = tmp_path / "made" / "mine"
    words = ("convert", str(tmp_path / "mine.pt"), str(out), "--num-train-timesteps", "151")
    assert run(*words) == ExitCode.OK
    assert f"onestep serve --model {out}" in capsys.readouterr().out
    assert run("models", str(out)) == ExitCode.OK
    assert "train steps  151" in capsys.readouterr().out
    assert run(*words) == ExitCode.USAGE
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("gone.pt", "out"), ExitCode.MODEL, "gone.pt: is missing."),
        (("gone.pt", "out", "--num-train-timesteps", "40"), ExitCode.MODEL, "gone.pt: is missing."),
        (("gone.pt", "out", "--num-train-timesteps", "1"), ExitCode.USAGE, "must be 2 to 100000"),
    ],
)
def test_convert_refuses_with_the_reason(
    words: tuple[str, ...],
    code: ExitCode,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code == run("convert", *words)
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_convert_says_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file := tmp_path / "file").touch()
    torch.save(OriginalUNet([32, 64], 2, {1}, 8, True, 4).state_dict(), tmp_path / "mine.pt")
    words = ("convert", str(tmp_path / "mine.pt"), str(file / "out"), "--num-train-timesteps", "151")
    assert run(*words) == ExitCode.USAGE
    assert f"onestep convert: {file}" in capsys.readouterr().err


def test_registering_the_commands_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from service.models.commands import add_parsers;"
        "add_parsers(argparse.ArgumentParser().add_subparsers());"
        "print(sorted({'torch', 'diffusers', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"

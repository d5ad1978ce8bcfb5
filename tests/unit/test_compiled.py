"""A compiled network gives what the network gives, the same bits for any rows and threads, and is compiled once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine.certification import certify
from service.engine.compiled import CompiledForward, kept_library
from service.engine.cpu import CpuNetwork
from service.engine.forward import Forward, build_forward
from service.engine.protocol import EngineConfig
from service.errors import FatalModelError
from service.models.folder import load_info
from service.models.info import ModelInfo
from service.models.loader import load_unet
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow  # a compiler's work

CPU = torch.device("cpu")
KEYS = [(250.0 * i - 1000.0, i % 10) for i in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return load_info(tiny_model(tmp_path_factory.mktemp("models") / "tiny", "plain"), "tiny")


def config(cache: Path) -> EngineConfig:
    return EngineConfig("cpu", "float32", 2, 8, 1.0, batch_invariant=True, cache_dir=str(cache), compile=True)


def build(info: ModelInfo, cache: Path) -> Forward:
    with torch.inference_mode():
        return build_forward(load_unet(info), info, CPU, torch.float32, config(cache))


@pytest.fixture(scope="module")
def compiled(info: ModelInfo, folder: Path) -> Forward:
    forward = build(info, folder)
    assert isinstance(forward, CompiledForward)
    return forward


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def x_of(info: ModelInfo, rows: int) -> Tensor:
    return torch.randn((rows, *info.latent_shape), generator=torch.Generator().manual_seed(1))


def run(forward: Forward, x: Tensor, first: int = 0, threads: int = 1) -> Tensor:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return forward.run(x, forward.prepare(KEYS[first : first + len(x)]))


@pytest.mark.usefixtures("one_thread")
def test_it_gives_what_the_network_gives(compiled: Forward, info: ModelInfo) -> None:
    """Up to rounding, at every time and class."""
    with torch.inference_mode():
        plain = build_forward(load_unet(info), info, CPU, torch.float32)
    x = x_of(info, 4)
    torch.testing.assert_close(run(compiled, x), run(plain, x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_bits_depend_on_neither_rows_nor_threads(compiled: Forward, info: ModelInfo, rows: int, threads: int) -> None:
    """Every row of eight has the bits that it has in a batch of four with one thread."""
    x = x_of(info, 8)
    expected = torch.cat([run(compiled, x[:4]), run(compiled, x[4:], 4)])
    for first in range(8 - rows + 1):
        found = run(compiled, x[first : first + rows], first, threads)
        assert torch.equal(found, expected[first : first + rows])


def test_lanes_run_it_side_by_side(compiled: Forward, info: ModelInfo) -> None:
    """Calls of several threads at once do not mix their results up."""
    x = x_of(info, 8)
    with torch.inference_mode():
        prepared = compiled.prepare(KEYS)

    def call(row: int) -> Tensor:
        with torch.inference_mode():
            return compiled.run(x[row : row + 1], (prepared[0][row : row + 1],))

    expected = [call(row) for row in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            assert all(map(torch.equal, pool.map(call, range(8)), expected))


def test_certification_admits_every_way(compiled: Forward, info: ModelInfo, folder: Path) -> None:
    """Parts of one to four rows, and a row with two threads, are proven to have the anchor's bits."""
    network = CpuNetwork(compiled, 2)
    try:
        with torch.inference_mode():
            certificate, _ = certify(info, network, config(folder))
    finally:
        network.close()
    assert {trial.way for trial in certificate.trials if trial.exact} == set(network.candidates)


def test_a_later_start_finds_it_compiled(
    compiled: Forward, info: ModelInfo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled twice; another revision of the model is another library."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", refuse)
    torch.testing.assert_close(run(build(info, folder), x_of(info, 1)), run(compiled, x_of(info, 1)), rtol=0, atol=0)
    (library,) = (folder / "compiled").iterdir()
    assert kept_library(info, config(folder)) == library
    assert library.stat().st_mode & 0o777 == 0o600


def test_a_library_that_others_could_have_written_is_not_run(compiled: Forward, info: ModelInfo, folder: Path) -> None:
    path = kept_library(info, config(folder))
    path.chmod(0o622)
    try:
        with pytest.raises(FatalModelError, match="others could have written it"):
            build(info, folder)
    finally:
        path.chmod(0o600)


def test_a_damaged_library_is_not_loaded_but_made_again(
    compiled: Forward, info: ModelInfo, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was cut off would end the process when it is loaded."""
    whole = kept_library(info, config(folder))
    (tmp_path / "compiled").mkdir()
    damaged = tmp_path / "compiled" / whole.name
    damaged.write_bytes(whole.read_bytes()[:5000])
    damaged.chmod(0o600)
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    with pytest.raises(FatalModelError, match="tiny cannot be compiled"):
        build(info, tmp_path)
    assert not damaged.exists()


def test_without_a_compiler_the_start_says_so(info: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FatalModelError, match=r"tiny cannot be compiled: .*[Cc]ompiler"):
        build(info, tmp_path)
    assert list((tmp_path / "compiled").iterdir()) == []

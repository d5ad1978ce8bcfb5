"""Which ways of running are admitted, and that timing has no say in it."""

from __future__ import annotations

import re
import time as clock
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
import torch
from torch import Tensor

from service.engine.certificates import Certificate, load, save
from service.engine.certification import batch_sizes, certify, fingerprint
from service.engine.cpu import ROWS, CpuNetwork
from service.engine.embedding import Key
from service.engine.forward import Forward, build_forward
from service.engine.lanes import Way
from service.engine.protocol import EngineConfig
from service.engine.request import SizeTime
from service.errors import FatalModelError
from service.models.folder import load_info
from service.models.info import ModelInfo
from service.models.loader import load_unet
from tests.api.counting_engine import model_info
from tests.tiny import tiny_model


class Wrapped:
    """A real forward with something done to it."""

    def __init__(self, inner: Forward) -> None:
        self.inner = inner
        self.plan, self.teams = inner.plan, inner.teams

    def prepare(self, keys: list[Key]) -> tuple[Tensor, ...]:
        return self.inner.prepare(keys)

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        return self.inner.run(x, prepared)


class Busy(Wrapped):
    """On a machine that something else keeps busy."""

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        clock.sleep(0.2 * len(x))
        return super().run(x, prepared)


class OtherKernelForThree(Wrapped):
    """With a kernel whose last bit differs for three rows."""

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        output = super().run(x, prepared)
        return torch.nextafter(output, torch.zeros(())) if len(x) == 3 else output


class OtherKernelForTeams(Wrapped):
    """With a kernel whose last bit differs with the number of threads."""

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        output = super().run(x, prepared)
        return torch.nextafter(output, torch.zeros(())) if torch.get_num_threads() > 1 else output


class NeighboursMatter(Wrapped):
    """With a kernel whose last bit depends on the row before."""

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        output = super().run(x, prepared)
        output[1:] += 1e-3 * output[:-1].clone()
        return output


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return EngineConfig("cpu", "float32", 2, 16, 1.0, True, str(tmp_path / "cache"))


@pytest.fixture
def info(tmp_path: Path) -> ModelInfo:
    return load_info(tiny_model(tmp_path / "model"), "tiny")


def run(
    kind: type[Wrapped], info: ModelInfo, config: EngineConfig
) -> tuple[Certificate, tuple[SizeTime, ...], CpuNetwork]:
    with torch.inference_mode():
        forward = build_forward(load_unet(info), info, torch.device("cpu"), torch.float32)
        network = CpuNetwork(kind(forward), config.threads)
        return *certify(info, network, config), network


def exact(certificate: Certificate) -> set[Way]:
    return {trial.way for trial in certificate.trials if trial.exact}


def test_every_way_of_the_real_network_is_exact(info: ModelInfo, config: EngineConfig) -> None:
    certificate, sizes, _ = run(Wrapped, info, config)
    assert exact(certificate) == {Way(1, 2), *(Way(rows, 1) for rows in ROWS)}
    assert [size.size for size in sizes] == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16]


@pytest.mark.slow
def test_a_busy_machine_admits_the_same_ways(info: ModelInfo, config: EngineConfig) -> None:
    busy, _, _ = run(Busy, info, config)
    idle, _, _ = run(Wrapped, info, msgspec.structs.replace(config, cache_dir=config.cache_dir + "2"))
    assert busy.fingerprint == idle.fingerprint
    assert busy.trials == idle.trials


@pytest.mark.slow
def test_bad_times_and_untried_sizes_of_an_earlier_start_heal(info: ModelInfo, config: EngineConfig) -> None:
    config = msgspec.structs.replace(config, max_step_time=0.2)
    slow, few, _ = run(Busy, info, config)
    quick, many, _ = run(Wrapped, info, config)
    assert quick.times[0].seconds < slow.times[0].seconds
    assert len(few) < len(many)


@pytest.mark.parametrize(("kind", "way"), [(OtherKernelForThree, Way(3, 1)), (OtherKernelForTeams, Way(1, 2))])
def test_a_way_with_other_bits_is_refused(info: ModelInfo, config: EngineConfig, kind: type[Wrapped], way: Way) -> None:
    certificate, _, network = run(kind, info, config)
    assert way not in exact(certificate)
    assert len(exact(certificate)) == len(ROWS)
    x, time, labels = torch.randn(6, 3, 8, 8), torch.full((6,), 900.0), torch.arange(6)
    with torch.inference_mode():
        together = network(x, time, labels)
        alone = [network(x[i : i + 1], time[:1], labels[i : i + 1]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


def test_where_neighbours_matter_rows_run_alone(info: ModelInfo, config: EngineConfig) -> None:
    certificate, sizes, _ = run(NeighboursMatter, info, config)
    assert exact(certificate) == {Way(1, 1), Way(1, 2)}
    assert [size.size for size in sizes] == [1, 2]


def test_without_invariance_every_way_is_used(info: ModelInfo, config: EngineConfig) -> None:
    every = msgspec.structs.replace(config, batch_invariant=False)
    _, sizes, _ = run(OtherKernelForThree, info, every)
    assert [size.size for size in sizes] == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16]


class Undetermined(Wrapped):
    """With results that are never twice the same."""

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        return super().run(x, prepared) + 1e-3 * torch.rand(())


def test_a_device_that_repeats_nothing_is_refused_unless_invariance_is_off(
    info: ModelInfo, config: EngineConfig
) -> None:
    with pytest.raises(FatalModelError, match="batch_invariant"):
        run(Undetermined, info, config)
    _, sizes, _ = run(Undetermined, info, msgspec.structs.replace(config, batch_invariant=False))
    assert sizes[-1].size == 16


class Overflowing(Wrapped):
    """With numbers that are too large for the number type, which end in none."""

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        return super().run(x, prepared) * torch.nan


@pytest.mark.parametrize("invariant", [True, False])
def test_pictures_that_are_none_are_refused_by_name(info: ModelInfo, config: EngineConfig, invariant: bool) -> None:
    """Not as other bits for the same work: NaN equals nothing."""
    with pytest.raises(FatalModelError, match="not finite in float32"):
        run(Overflowing, info, msgspec.structs.replace(config, batch_invariant=invariant))


@pytest.mark.parametrize("pattern", ["true", r'"seconds": [0-9.e-]+'])
def test_a_certificate_that_cannot_be_true_is_made_anew(info: ModelInfo, config: EngineConfig, pattern: str) -> None:
    """An anchor without its own bits, steps that take no time."""
    before, sizes, _ = run(Wrapped, info, config)
    (file,) = (path for path in Path(config.cache_dir).rglob("*.json"))
    damaged, count = re.subn(pattern, {"true": "false"}.get(pattern, '"seconds": 0'), file.read_text())
    assert count
    file.write_text(damaged)
    after, again, _ = run(Wrapped, info, config)
    assert (after.fingerprint, after.trials) == (before.fingerprint, before.trials)
    assert [size.size for size in again] == [size.size for size in sizes]
    assert all(size.seconds > 0 for size in again)


def test_a_certificate_that_is_no_text_is_none(info: ModelInfo, config: EngineConfig) -> None:
    before, sizes, _ = run(Wrapped, info, config)
    (file,) = (path for path in Path(config.cache_dir).rglob("*.json"))
    file.write_bytes(file.read_bytes().replace(before.fingerprint.encode(), b"\xff", 1))
    after, again, _ = run(Wrapped, info, config)
    assert (after.fingerprint, after.trials) == (before.fingerprint, before.trials)
    assert [size.size for size in again] == [size.size for size in sizes]


@pytest.mark.parametrize(("kind", "way"), [(OtherKernelForThree, Way(3, 1)), (OtherKernelForTeams, Way(1, 2))])
def test_a_certificate_that_does_not_hold_is_made_anew(
    info: ModelInfo, config: EngineConfig, caplog: pytest.LogCaptureFixture, kind: type[Wrapped], way: Way
) -> None:
    run(Wrapped, info, config)
    certificate, _, _ = run(kind, info, config)
    assert "does not hold any more" in caplog.text
    assert exact(certificate) == {Way(1, 2), *(Way(rows, 1) for rows in ROWS)} - {way}


@pytest.mark.parametrize(
    ("rows", "largest", "expected"),
    [
        ((1, 2), 11, [SizeTime(1, 0.1), SizeTime(2, 0.2), SizeTime(3, 0.3), SizeTime(4, 0.3)]),
        ((1, 2), 3, [SizeTime(1, 0.1), SizeTime(2, 0.2), SizeTime(3, 0.3)]),
        ((2,), 11, [SizeTime(2, 0.2), SizeTime(4, 0.3)]),
        ((2,), 1, [SizeTime(1, 0.1)]),
    ],
)
def test_sizes_are_those_without_padding(
    info: ModelInfo, rows: tuple[int, ...], largest: int, expected: list[SizeTime]
) -> None:
    """A size between two measured ones takes as long as the larger of them; there is always one."""
    network = CpuNetwork(build_forward(load_unet(info), info, torch.device("cpu"), torch.float32), 2, rows)
    times = (SizeTime(1, 0.1), SizeTime(2, 0.2), SizeTime(4, 0.3))
    assert list(batch_sizes(times, network, largest)) == expected


def test_without_invariance_the_threads_decide_bits(tmp_path: Path) -> None:
    network = cast("CpuNetwork", SimpleNamespace(plan="plan"))

    def found(threads: int, invariant: bool, revision: str = "sha256:1", dtype: str = "float32") -> str:
        config = EngineConfig("cpu", dtype, threads, 8, 1.0, invariant, str(tmp_path))
        info = msgspec.structs.replace(model_info(), revision=revision)
        return fingerprint(info, config, network, Way(8, 1), [])

    assert found(1, True) == found(2, True)
    assert found(1, False) != found(2, False)
    assert found(1, True) != found(1, True, revision="sha256:2")
    assert found(1, True) != found(1, True, dtype="bfloat16")


def test_a_certificate_is_of_as_many_threads_and_one_that_is_damaged_is_none(tmp_path: Path) -> None:
    made = Certificate("f" * 32, (), ())
    save(str(tmp_path), made, 2)
    assert load(str(tmp_path), "f" * 32, 2) == made
    assert load(str(tmp_path), "f" * 32, 1) is None
    (path,) = tmp_path.glob("certificates/*")
    path.write_bytes(path.read_bytes()[:-5])
    assert load(str(tmp_path), "f" * 32, 2) is None

"""The GPU's bookkeeping, run on the CPU: sizes, places, padding.

Graphs and streams themselves need a GPU; `benchmarks/gpu_check.py` runs all of this there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from service.engine.certification import certify
from service.engine.collecting import Collected
from service.engine.cuda import Buckets, CudaNetwork
from service.engine.forward import build_forward
from service.engine.lanes import Way
from service.engine.protocol import EngineConfig
from service.engine.worker import settle
from service.models.folder import load_info
from service.models.info import ModelInfo
from service.models.loader import load_unet
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("inference")


class Rerun:
    """A recorder without graphs: a replay runs the computation again and puts the result in its place."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        output = run().clone()
        self.rows.append(len(output))

        def replay() -> None:
            output.copy_(run())

        return replay, output


@pytest.fixture
def info(tmp_path: Path) -> ModelInfo:
    return load_info(tiny_model(tmp_path / "model"), "tiny")


def network_of(info: ModelInfo, largest: int, recorder: Rerun | None = None) -> CudaNetwork:
    device = torch.device("cpu")
    forward = build_forward(load_unet(info), info, device, torch.float32)
    return CudaNetwork(forward, info.latent_shape, True, device, largest, recorder or Rerun())


def rows_of(info: ModelInfo, count: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(count, *info.latent_shape, generator=torch.Generator().manual_seed(0))
    return x, torch.linspace(-1500, 1095, count), torch.arange(count) % 10


def test_sizes_are_recorded_largest_first(info: ModelInfo) -> None:
    recorder = Rerun()
    network_of(info, 12, recorder)
    assert recorder.rows == [12, 8, 4, 2, 1]


@pytest.mark.parametrize("count", [1, 3, 8, 12, 13, 30])
def test_any_number_of_rows_gives_each_its_own_result(info: ModelInfo, count: int) -> None:
    network = network_of(info, 12)
    x, time, labels = rows_of(info, count)
    together = network(x, time, labels)
    alone = [network(x[i : i + 1], time[i : i + 1], labels[i : i + 1]) for i in range(count)]
    assert torch.equal(together, torch.cat(alone))


class Small(Rerun):
    """On a device with memory for so many rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        made = super().record(run)
        if self.rows[-1] > self.most:
            raise torch.OutOfMemoryError
        return made


def test_what_a_device_has_no_memory_for_is_left_out(info: ModelInfo, caplog: pytest.LogCaptureFixture) -> None:
    network = network_of(info, 12, Small(8))
    assert network.sizes(64) == [1, 2, 4, 8]
    assert "no memory for batches of 12" in caplog.text


def test_a_passing_shortage_does_not_decide_the_bits(info: ModelInfo) -> None:
    """Without the usual anchor they may be others: the next start may have room."""
    with pytest.raises(torch.OutOfMemoryError):
        network_of(info, 12, Small(4))


def test_a_gpu_is_chosen_before_anything_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels run on the current one, whatever their tensors are on."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for flag in ("deterministic", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    settle(EngineConfig("cuda:1", "float32", 1, 16, 10.0, True, ""))
    assert chosen == [torch.device("cuda:1")]
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == (True, False)


def test_a_result_survives_the_next_replay(info: ModelInfo) -> None:
    network = network_of(info, 4)
    x, time, labels = rows_of(info, 4)
    first = network(x, time, labels)
    before = first.clone()
    network(x.flip(0), time, labels)
    assert torch.equal(first, before)


def test_only_admitted_sizes_are_kept(info: ModelInfo) -> None:
    network = network_of(info, 16)
    network.admit([Way(4, 1), Way(16, 1)])
    assert network.sizes(64) == [4, 16]
    assert [network.padded(rows) for rows in (1, 4, 5, 16, 17, 21)] == [4, 4, 16, 16, 20, 32]
    x, time, labels = rows_of(info, 3)
    assert torch.equal(network(x, time, labels), network.run_as(Way(4, 1), x, time, labels))


def test_buckets_refuse_a_size_that_was_not_recorded(info: ModelInfo) -> None:
    forward = build_forward(load_unet(info), info, torch.device("cpu"), torch.float32)
    x, _, _ = rows_of(info, 4)
    prepared = forward.prepare([(0.0, 1)] * 4)
    buckets = Buckets(forward, x, prepared, (2, 4))
    buckets.record(Rerun())
    with pytest.raises(KeyError):
        buckets.run(x[:3], [each[:3] for each in prepared])


def test_it_is_certified_like_any_network(info: ModelInfo, tmp_path: Path) -> None:
    config = EngineConfig("cpu", "float32", 1, 16, 10.0, True, str(tmp_path / "cache"))
    certificate, sizes = certify(info, network_of(info, 16), config)
    assert [trial.way.rows for trial in certificate.trials if trial.exact] == [1, 2, 4, 8, 16]
    assert [size.size for size in sizes] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("largest", [8, 12, 24])
def test_what_was_certified_for_another_largest_batch_holds(info: ModelInfo, tmp_path: Path, largest: int) -> None:
    """Sizes that are no longer recorded, or not yet, are no fault of the others."""
    config = EngineConfig("cpu", "float32", 1, 16, 10.0, True, str(tmp_path / "cache"))
    before, _ = certify(info, network_of(info, 16), config)
    config = msgspec.structs.replace(config, max_batch_size=largest)
    certificate, sizes = certify(info, network_of(info, largest), config)
    assert certificate.fingerprint == before.fingerprint
    assert {size.size for size in sizes} == {size for size in (1, 2, 4, 8, 16, largest) if size <= largest}


def test_what_was_certified_with_more_memory_holds(info: ModelInfo, tmp_path: Path) -> None:
    """Times of sizes that there was room for then say nothing."""
    config = EngineConfig("cpu", "float32", 1, 16, 10.0, True, str(tmp_path / "cache"))
    before, _ = certify(info, network_of(info, 16), config)
    certificate, sizes = certify(info, network_of(info, 16, Small(8)), config)
    assert certificate.fingerprint == before.fingerprint
    assert [size.size for size in sizes] == [1, 2, 4, 8]


def test_collected_images_come_in_the_kind_asked_for() -> None:
    images = [torch.full((3, 2, 2), value) for value in (-1.0, 1.0, float("nan"), 0.0)]
    results = Collected(images, ["uint8", "float32", "uint8", "uint8"], lambda value: lambda: value).wait()
    assert results[0] == bytes(12)
    assert results[1] == torch.ones(12).numpy().tobytes()
    assert results[2] is None
    assert results[3] == bytes([128] * 12)

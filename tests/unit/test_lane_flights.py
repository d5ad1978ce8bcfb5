"""Lanes of a CPU: each steps a batch of its own and waits for no other."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest
import torch
from torch import Tensor

from service.engine import loop
from service.engine.cpu import CpuNetwork
from service.engine.embedding import Key
from service.engine.forward import Forward, build_forward
from service.engine.lanes import Place
from service.engine.loop import EngineLoop
from service.engine.protocol import Expired, Finished, FromEngine, Previewed, StepEnded, StepStarted
from service.engine.request import Sample, SizeTime
from service.engine.runner import ModelRunner
from service.models.folder import load_info
from service.models.info import ModelInfo
from service.models.loader import load_unet
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("inference")

SLOW = 7  # class whose forwards take until they are let go
PATIENCE = 20.0  # seconds


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return load_info(tiny_model(tmp_path_factory.mktemp("model") / "model"), "tiny")


class Gate:
    """A real forward that keeps rows of one class waiting, and may fail."""

    def __init__(self, inner: Forward) -> None:
        self.plan, self.teams = inner.plan, inner.teams
        self.open = threading.Event()
        self.reached = threading.Event()
        self.broken = False
        self.running = self.most = 0
        self._inner = inner
        self._local = threading.local()
        self._counting = threading.Lock()

    def prepare(self, keys: list[Key]) -> tuple[Tensor, ...]:
        self._local.slow = any(label == SLOW for _, label in keys)
        return self._inner.prepare(keys)

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        if self._local.slow:
            self.reached.set()
            assert self.open.wait(PATIENCE)
            if self.broken:
                raise ZeroDivisionError
        with self._counting:
            self.running += 1
            self.most = max(self.most, self.running)
        output = self._inner.run(x, prepared)
        with self._counting:
            self.running -= 1
        return output


class Stand:
    """A loop of one model on two lanes."""

    def __init__(self, info: ModelInfo, lanes: int = 2, largest: int = 4) -> None:
        self.info = info
        self.said: list[FromEngine] = []
        self.bell = threading.Event()
        self.gate = Gate(build_forward(load_unet(info), info, torch.device("cpu"), torch.float32))
        self.network = CpuNetwork(self.gate, lanes)
        sizes = [SizeTime(size, 1e-3) for size in range(1, largest + 1)]
        self.loop = EngineLoop([ModelRunner(info, self.network, sizes, 10.0)], self.note, None, self.bell)

    def note(self, *messages: FromEngine) -> None:
        self.said += messages

    def submit(self, *ids: int, steps: int = 1, label: int = 1, **fields: float) -> None:
        sigmas = self.info.schedule.sigmas(self.info.schedule.evenly_spaced(steps))
        self.loop.submit(
            Sample(id=i, request=i, client="", model="tiny", seed=i, class_label=label, sigmas=sigmas, **fields)
            for i in ids
        )

    def occupy(self) -> None:
        """Puts sample 90 into one lane, where it stays until the gate opens; 91 has been in the other."""
        self.submit(90, label=SLOW)
        self.submit(91)  # else it would have both lanes
        self.until(lambda: 91 in self.pixels)
        assert self.gate.reached.wait(PATIENCE)

    def until(self, there: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not there():
            assert time.monotonic() < end
            self.loop.step()

    def finish(self) -> None:
        self.gate.open.set()
        while self.loop.step():
            pass

    @property
    def pixels(self) -> dict[int, bytes]:
        return {said.sample: said.result.pixels for said in self.said if isinstance(said, Finished)}

    def in_the_air(self) -> Iterator[list[tuple[int, ...]]]:
        """The batches under way, after each start and end."""
        air: list[tuple[int, ...]] = []
        for said in self.said:
            if isinstance(said, StepStarted):
                air.append(said.samples)
            elif isinstance(said, StepEnded):
                air.remove(said.samples)
            yield air


@pytest.fixture
def stand(info: ModelInfo) -> Iterator[Stand]:
    made = Stand(info)
    yield made
    made.gate.open.set()
    made.network.close()


def alone(info: ModelInfo, sample: int, **fields: int) -> Stand:
    lone = Stand(info)
    lone.submit(sample, **fields)
    lone.finish()
    lone.network.close()
    return lone


def test_a_slow_batch_keeps_one_lane_only(stand: Stand) -> None:
    stand.occupy()
    stand.submit(1, 2, 3, steps=3)
    stand.until(lambda: stand.pixels.keys() == {1, 2, 3, 91})
    stand.finish()
    assert stand.pixels.keys() == {1, 2, 3, 90, 91}


def test_rows_have_the_bytes_of_a_lone_request_whoever_is_in_the_other_lane(info: ModelInfo, stand: Stand) -> None:
    stand.occupy()
    stand.submit(*range(5), steps=3, preview_every=1)
    stand.until(lambda: len(stand.pixels) == 6)
    stand.finish()
    for i in range(5):
        lone = alone(info, i, steps=3, preview_every=1)
        assert stand.pixels[i] == lone.pixels[i]
        found, expected = (
            [said.preview for said in each.said if isinstance(said, Previewed) and said.sample == i]
            for each in (stand, lone)
        )
        assert [preview.step for preview in found] == [1, 2]
        assert found == expected


def test_every_sample_makes_every_step_once(stand: Stand) -> None:
    stand.submit(*range(7), steps=4)
    stand.finish()
    steps = Counter(sample for said in stand.said if isinstance(said, StepEnded) for sample in said.samples)
    assert steps == dict.fromkeys(range(7), 4)


def test_both_lanes_work_at_once_and_no_more(stand: Stand) -> None:
    stand.submit(*range(12), steps=8)
    stand.finish()
    assert stand.gate.most == 2


def test_waiting_rows_are_shared_out_to_the_lanes_that_are_free(info: ModelInfo) -> None:
    stand = Stand(info, largest=8)
    stand.submit(0, 1, 2)
    stand.loop.step()
    assert [said.samples for said in stand.said if isinstance(said, StepStarted)] == [(0, 1), (2,)]
    stand.finish()
    stand.network.close()


def test_news_end_the_wait_for_a_lane(stand: Stand) -> None:
    stand.occupy()
    timer = threading.Timer(0.1, stand.bell.set)
    timer.start()
    assert stand.loop.step()
    assert 90 not in stand.pixels
    timer.join()


def test_a_suspect_is_alone_in_the_air(stand: Stand) -> None:
    stand.submit(*range(6), steps=2)
    stand.submit(10, 11, steps=2, isolated=True)
    stand.finish()
    assert len(stand.pixels) == 8
    for air in stand.in_the_air():
        assert len(air) == 1 or not any(sample >= 10 for batch in air for sample in batch), air


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_what_is_cancelled_or_expires_in_the_air_disturbs_nobody(
    info: ModelInfo, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    stand.submit(0, steps=2, label=SLOW, deadline=101.0)
    stand.submit(1, steps=2, label=SLOW)
    stand.loop.step()
    assert stand.gate.reached.wait(PATIENCE)
    stand.loop.cancel([1])
    clock.now = 102.0
    stand.submit(2, steps=2)
    stand.gate.open.set()
    stand.finish()
    assert [said.samples for said in stand.said if isinstance(said, Expired)] == [(0,)]
    assert (0,) in [said.samples for said in stand.said if isinstance(said, StepStarted)]
    assert stand.pixels == alone(info, 2, steps=2).pixels
    assert stand.loop._rows == {}


def test_what_a_lane_raises_ends_the_loop(stand: Stand) -> None:
    stand.gate.broken = True
    stand.submit(0, label=SLOW)
    with pytest.raises(ZeroDivisionError):
        stand.finish()


def test_a_lone_row_has_all_cores_unless_others_work(info: ModelInfo) -> None:
    stand = Stand(info, lanes=4)
    assert stand.network.place(1, 4) == Place(1, 4, 4)
    assert stand.network.place(2, 4) == Place(1, 2, 2)
    assert stand.network.place(1, 1) is None
    assert stand.network.place(3, 4) is None
    stand.network.close()


def test_times_of_batches_are_told_by_the_lanes_they_leave(info: ModelInfo, stand: Stand) -> None:
    """A forward of two rows in one of two lanes tells what a batch of four takes, a row with a team what it takes."""
    stand.submit(*range(8), steps=2)
    stand.finish()
    pairs = [said for said in stand.said if isinstance(said, StepEnded) and said.size == 2]
    assert pairs
    assert all(said.batch == 4 for said in pairs)
    (lone,) = [said for said in alone(info, 20).said if isinstance(said, StepEnded)]
    assert (lone.size, lone.batch) == (1, 1)


def test_a_ring_ends_one_wait_for_a_lane(stand: Stand) -> None:
    """A bell that was not put back would keep a core busy with asking."""
    stand.occupy()
    stand.bell.clear()
    rings = [threading.Timer(seconds, stand.bell.set) for seconds in (0.1, 0.6)]
    for ring in rings:
        ring.start()
    began = time.monotonic()
    stand.loop.step()
    stand.loop.step()
    assert time.monotonic() - began >= 0.5
    for ring in rings:
        ring.join()


def test_models_have_their_turns(info: ModelInfo) -> None:
    """Endless work of one model keeps none of another from its steps."""
    stand = Stand(info, lanes=1, largest=1)
    other = msgspec.structs.replace(info, name="other")
    sizes = [SizeTime(1, 1e-3)]
    stand.loop = EngineLoop(
        [ModelRunner(each, stand.network, sizes, 10.0) for each in (info, other)], stand.note, None, stand.bell
    )
    sigmas = info.schedule.sigmas(info.schedule.evenly_spaced(4))
    stand.loop.submit(
        Sample(id=i, request=i, client="", model=name, seed=i, class_label=1, sigmas=sigmas)
        for i, name in enumerate(("tiny", "tiny", "other", "other"))
    )
    stand.finish()
    models = [said.model for said in stand.said if isinstance(said, StepStarted)]
    assert models[:8] in (["tiny", "other"] * 4, ["other", "tiny"] * 4)
    stand.network.close()


def test_a_sample_started_with_its_first_step(stand: Stand) -> None:
    stand.submit(1, steps=3)
    stand.finish()
    (result,) = [said.result for said in stand.said if isinstance(said, Finished)]
    steps = [said.seconds for said in stand.said if isinstance(said, StepEnded)]
    assert result.finished - result.started >= sum(steps)

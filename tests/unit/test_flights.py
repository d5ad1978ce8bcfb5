"""A device that works while the CPU does something else: what it is asked for, when, and what becomes of it.

The device here is the CPU, which is done at once; what is waited for is noted, so that order can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TypeVar, cast

import pytest
import torch
from torch import Tensor

from service.engine import flight
from service.engine.flight import SPARE, Lead
from service.engine.forward import build_forward
from service.engine.loop import EngineLoop
from service.engine.network import Mark, Network
from service.engine.protocol import Finished, FromEngine, Previewed, StepEnded, StepStarted
from service.engine.request import Sample, SizeTime
from service.engine.runner import ModelRunner
from service.models.folder import load_info
from service.models.info import ModelInfo
from service.models.loader import load_unet
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("inference")

Item = TypeVar("Item")
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return load_info(tiny_model(tmp_path_factory.mktemp("model") / "model"), "tiny")


class Device:
    """As `service.engine.network.Network`. Says in a journal what it is asked for and what is waited for."""

    lanes = None
    device = torch.device("cpu")

    def __init__(self, info: ModelInfo) -> None:
        self.journal: list[str] = []
        self._forward = build_forward(load_unet(info), info, self.device, torch.float32)

    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor | None, /) -> Tensor:
        assert class_labels is not None
        rows = [
            self._forward.run(x[i : i + 1], self._forward.prepare([(float(time[i]), int(class_labels[i]))]))
            for i in range(len(x))
        ]
        self.journal.append(f"asked for {len(x)}")
        return torch.cat(rows)

    def mark(self) -> Mark:
        return Mark(lambda: self.journal.append("over"), lambda: False)

    def copy_out(self, value: Tensor) -> Callable[[], Tensor]:
        self.journal.append("copy begins")

        def wait() -> Tensor:
            self.journal.append("copied")
            return value

        return wait

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        given = list(items)
        self.journal.extend(f"latents of {item.id}" for item in given if isinstance(item, Sample))
        return [function(item) for item in given]


class Stand:
    """A loop of one model on such a device."""

    def __init__(self, info: ModelInfo, device: Device, largest: int = 1) -> None:
        self.info = info
        self.said: list[FromEngine] = []
        self.pixels: dict[int, bytes] = {}
        sizes = [SizeTime(size, 1e-3) for size in range(1, largest + 1)]
        self.loop = EngineLoop([ModelRunner(info, cast(Network, device), sizes, 10.0)], self.note)
        self.journal = device.journal

    def note(self, *messages: FromEngine) -> None:
        self.said += messages
        for message in messages:
            if isinstance(message, StepStarted | StepEnded | Previewed):
                self.journal.append(f"{type(message).__name__}")
            elif isinstance(message, Finished):
                self.journal.append(f"finished {message.sample}")
                self.pixels[message.sample] = message.result.pixels

    def submit(self, *ids: int, steps: int = 1, **fields: int) -> None:
        sigmas = self.info.schedule.sigmas(self.info.schedule.evenly_spaced(steps))
        self.loop.submit(
            Sample(id=i, request=i, client="", model="tiny", seed=i, class_label=1, sigmas=sigmas, **fields)
            for i in ids
        )

    def finish(self) -> None:
        while self.loop.step():
            pass


ASKED = ["asked for 1", "copy begins", "copy begins"]  # of pixels, and of whether they are finite
OVER = ["over", "copied", "copied", "StepEnded"]  # which is said together with what was finished


def test_the_next_step_is_asked_for_before_this_one_is_over(info: ModelInfo) -> None:
    """And what this one finished is taken off the device while the next one runs."""
    stand = Stand(info, Device(info))
    stand.submit(0, 1)
    stand.finish()
    first = ["StepStarted", "latents of 0", *ASKED, "latents of 1"]
    assert stand.journal == [*first, "StepStarted", *ASKED, *OVER, "finished 0", *OVER, "finished 1"]


def test_one_step_is_ahead_and_no_more(info: ModelInfo) -> None:
    """So what arrives while a step runs has its place in the one after the next at the latest."""
    stand = Stand(info, Device(info))
    stand.submit(0, 1, 2, 3)
    in_the_air = []
    while stand.loop.step():
        started, ended = (sum(isinstance(said, kind) for said in stand.said) for kind in (StepStarted, StepEnded))
        in_the_air.append(started - ended)
    assert in_the_air == [1, 1, 1, 1, 0]


def test_what_arrives_while_a_step_runs_is_in_the_next_one(info: ModelInfo) -> None:
    stand = Stand(info, Device(info), largest=4)
    stand.submit(0, steps=2)
    stand.loop.step()
    stand.submit(1, 2)
    stand.finish()
    assert [len(said.samples) for said in stand.said if isinstance(said, StepStarted)] == [1, 3]


def test_the_next_step_waits_for_what_may_arrive_and_then_leads_by_what_it_took_to_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    def never() -> bool:
        return False

    clock = Clock()
    monkeypatch.setattr(flight, "time", clock)
    lead = Lead()
    lead.wait(101.0, never)
    assert clock.now == pytest.approx(101.0 - SPARE)
    clock.now += 0.25
    lead.launched()
    lead.wait(105.0, never)
    assert clock.now == pytest.approx(104.75 - SPARE)
    lead.idle()
    clock.now += 50.0  # nothing to do
    lead.launched()
    lead.wait(160.0, never)
    assert clock.now == pytest.approx(159.75 - SPARE)
    lead.wait(159.0, never)
    assert clock.now == pytest.approx(159.75 - SPARE)


class Fast(Device):
    """Has done a step as soon as it was asked for it."""

    def mark(self) -> Mark:
        return Mark(lambda: None, lambda: True)


def test_a_step_that_took_less_than_was_thought_is_not_slept_out(info: ModelInfo) -> None:
    """One slow spell would be taken for the time of all steps after it, for each would be waited for as long."""
    stand = Stand(info, Fast(info))
    runner = stand.loop._runners["tiny"]
    for _ in range(8):
        runner.times.observe(1, 30.0)
    stand.submit(*range(12))
    stand.finish()
    assert max(said.seconds for said in stand.said if isinstance(said, StepEnded)) < 5


def test_a_suspect_is_alone_in_the_air(info: ModelInfo) -> None:
    """Else who shares the device with it would be accused as well, each time."""
    stand = Stand(info, Device(info))
    stand.submit(0, 1)
    stand.submit(2, isolated=True)
    stand.finish()
    assert stand.pixels.keys() == {0, 1, 2}
    started: list[tuple[int, ...]] = []
    for said in stand.said:
        if isinstance(said, StepStarted):
            started.append(said.samples)
            assert (2,) not in started or len(started) == 1, started
        elif isinstance(said, StepEnded):
            started.pop(0)


def test_steps_and_previews_come_in_order_and_with_the_bytes_of_a_lone_request(info: ModelInfo) -> None:
    together, pictures = Stand(info, Device(info), largest=4), {}
    together.submit(0, 1, 2, steps=3, preview_every=1)
    together.finish()
    for i in range(3):
        alone = Stand(info, Device(info))
        alone.submit(i, steps=3, preview_every=1)
        alone.finish()
        pictures[i] = alone.pixels[i]
        expected = [said.preview for said in alone.said if isinstance(said, Previewed)]
        found = [said.preview for said in together.said if isinstance(said, Previewed) and said.sample == i]
        assert [preview.step for preview in found] == [1, 2]
        assert found == expected
    assert together.pixels == pictures


def test_what_was_cancelled_in_the_air_disturbs_nobody(info: ModelInfo) -> None:
    stand = Stand(info, Device(info), largest=2)
    stand.submit(0, 1, steps=3)
    stand.loop.step()
    stand.loop.cancel([0])
    stand.submit(2)
    stand.finish()
    alone = Stand(info, Device(info))
    alone.submit(1, steps=3)
    alone.submit(2)
    alone.finish()
    assert stand.pixels == alone.pixels


def test_latents_drawn_ahead_are_drawn_once_and_forgotten_with_their_sample(info: ModelInfo) -> None:
    stand = Stand(info, Device(info))
    stand.submit(0, 1, 2)
    stand.loop.step()
    assert stand.journal[-1] == "latents of 1"
    stand.loop.cancel([1])
    stand.finish()
    assert stand.journal.count("latents of 2") == 1
    assert stand.pixels.keys() == {0, 2}
    assert stand.loop._rows == {}


def test_times_of_a_step_begin_when_the_one_before_ended(info: ModelInfo) -> None:
    """Not when the device was asked for it: that would count the step before a second time."""
    stand = Stand(info, Device(info))
    stand.submit(0, 1, 2)
    stand.finish()
    results = [said.result for said in stand.said if isinstance(said, Finished)]
    spans = [(result.started, result.finished) for result in results]
    assert all(started <= ended for started, ended in spans)
    assert all(after[0] >= before[1] for before, after in pairwise(spans))
    seconds = [said.seconds for said in stand.said if isinstance(said, StepEnded)]
    assert seconds == pytest.approx([ended - started for started, ended in spans])

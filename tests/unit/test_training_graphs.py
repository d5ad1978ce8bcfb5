"""Steps that a GPU replays: when they are recorded, and that what they read and leave stays where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.plain_avatars import plain_avatars
from training.distiller import Distiller
from training.finisher import Finisher
from training.graphs import EAGER, Replayed
from training.recipe import PRESETS
from training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains


class Recorder:
    """In the place of a graph: a replay only counts."""

    def __init__(self) -> None:
        self.generator: torch.Generator | None = None
        self.replays = 0

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generator = generator

    def replay(self) -> None:
        assert self.generator is not None
        self.replays += 1


@contextmanager
def recording(graph: Recorder) -> Iterator[None]:
    assert graph.generator is not None
    yield


def test_a_step_is_recorded_after_the_first_ones_and_when_its_kind_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are dropped before it is, and never afterwards: a replay writes where it did."""
    monkeypatch.setattr("torch.cuda.CUDAGraph", Recorder)
    monkeypatch.setattr("torch.cuda.graph", recording)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    happened: list[str] = []

    def compute() -> Tensor:
        happened.append("computed")
        return torch.tensor(float(len(happened)))

    step = Replayed(compute, lambda: happened.append("forgot"), torch.Generator())
    for _ in range(EAGER):
        step("first")
    assert happened == ["forgot", "computed"] * EAGER
    results = [step(kind) for kind in ("first", "first", "first", "second", "second")]
    assert happened == ["forgot", "computed"] * (EAGER + 2)
    assert [float(each) for each in results] == [8, 8, 8, 10, 10]
    results[0].zero_()
    assert float(results[1]) == 8


def test_what_a_step_leaves_for_the_next_stays_in_its_place(tmp_path: Path) -> None:
    """A replay reads pictures where they were when it was recorded."""
    trainer = Finisher(PRESETS["smoke"], plain_avatars(tmp_path), tmp_path, "cpu", bf16=False, compiled=False)
    trainer.start_from(dict(trainer.unet.state_dict()))
    trainer.step()
    first = trainer.own
    assert first is not None
    before = [each.clone() for each in first]
    trainer.step()
    assert trainer.own is first
    assert not torch.equal(before[0], first[0])


def test_phases_whose_steps_differ_are_not_replayed(tmp_path: Path) -> None:
    data = plain_avatars(tmp_path)
    teacher = Trainer(PRESETS["smoke"], "pretrain", data, tmp_path, "cpu", bf16=False).result()
    trainer = Distiller(PRESETS["smoke"], data, tmp_path, "cpu", False, False, teacher)
    with pytest.raises(ValueError, match="phase distill cannot be replayed"):
        trainer.replay()

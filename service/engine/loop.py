"""The engine's heart: schedule, run, postprocess, one step at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import torch

from service.engine.batching import padded
from service.engine.collecting import Collected
from service.engine.protocol import Expired, Failed, Finished, FromEngine, Previewed, StepEnded, StepStarted
from service.engine.request import Preview, Sample, SampleResult
from service.engine.runner import ModelRunner, Row
from service.engine.scheduler import Scheduler

Announce = Callable[[bytes | None], None]


class EngineLoop:
    """Steps the samples of several models, a model at a time in turn. One thread calls everything here.

    What it has to say it hands to `emit`. A request's rows are the only persistent state; a batch is made anew
    for every step.
    """

    def __init__(
        self,
        runners: Iterable[ModelRunner],
        emit: Callable[[FromEngine], None],
        fault_seed: int | None = None,
    ) -> None:
        self._runners = {runner.info.name: runner for runner in runners}
        self._schedulers = {name: Scheduler() for name in self._runners}
        self._turns = deque(self._runners)
        self._rows: dict[int, Row] = {}
        self._started: dict[int, float] = {}
        self._leaving: list[tuple[Collected, list[Announce]]] = []
        self._emit = emit
        self._fault_seed = fault_seed

    def submit(self, samples: Iterable[Sample]) -> None:
        """Takes samples in; they are ready at once."""
        for sample in samples:
            self._schedulers[sample.model].add(sample)

    def cancel(self, samples: Iterable[int]) -> None:
        """Frees the places of samples nobody wants; unknown ids are passed over."""
        for sample in samples:
            for scheduler in self._schedulers.values():
                if scheduler.abort(sample):
                    self._forget(sample)

    def step(self) -> bool:
        """One forward of the model in turn. False when nothing is ready.

        On a device that works while the CPU does something else, what a step finished is handed out while the
        next one runs, and the samples that will come next draw their latents.
        """
        self._drop_expired()
        name = self._next_model()
        if name is None:
            self._hand_out()
            return False
        runner, scheduler = self._runners[name], self._schedulers[name]
        batch = scheduler.schedule(runner.choose(scheduler.ready()))
        self._run(runner, scheduler, batch)
        if not runner.overlaps:
            self._hand_out()
        return True

    def _next_model(self) -> str | None:
        for _ in range(len(self._turns)):
            self._turns.rotate(-1)
            if len(self._schedulers[self._turns[-1]]):
                return self._turns[-1]
        return None

    def _drop_expired(self) -> None:
        now = time.monotonic()
        for scheduler in self._schedulers.values():
            expired = scheduler.expired(now)
            for sample in expired:
                scheduler.abort(sample.id)
                self._forget(sample.id)
            if expired:
                self._emit(Expired(tuple(sample.id for sample in expired)))

    def _run(self, runner: ModelRunner, scheduler: Scheduler, batch: list[Sample]) -> None:
        """Takes one step; what it finishes is then on its way off the device."""
        ids = tuple(sample.id for sample in batch)
        size = padded(len(batch), runner.times.now)
        self._emit(StepStarted(runner.info.name, ids, size.seconds))
        began = time.monotonic()
        if any(sample.seed == self._fault_seed for sample in batch):
            raise RuntimeError("the fault seed was asked for")
        self._begin(runner, batch)
        for id_ in ids:
            self._started.setdefault(id_, began)
        rows = [self._rows[id_] for id_ in ids]
        denoised = runner.step(rows)
        finished = scheduler.update(batch)
        # a device gets all of its work at once: between two steps it has nothing to do
        collected = self._collect(runner, finished) if runner.overlaps else None
        self._hand_out()
        if runner.overlaps and len(scheduler):
            self._begin(runner, scheduler.upcoming(runner.choose(scheduler.ready())))
        runner.synchronize()
        ended = time.monotonic()
        runner.times.observe(size.size, ended - began)
        self._emit(StepEnded(runner.info.name, ids, size.size, ended - began))
        self._preview(runner, rows, denoised)
        self._finish(collected or self._collect(runner, finished), finished, ended)

    def _begin(self, runner: ModelRunner, samples: Iterable[Sample]) -> None:
        """Gives tensors to those samples that have none yet."""
        for row in runner.begin([sample for sample in samples if sample.id not in self._rows]):
            self._rows[row.sample.id] = row

    def _preview(self, runner: ModelRunner, rows: list[Row], denoised: torch.Tensor) -> None:
        wanted = [
            (row, estimate)
            for row, estimate in zip(rows, denoised, strict=True)
            if row.sample.preview_every
            and row.step % row.sample.preview_every == 0
            and row.step < len(row.sample.sigmas)
        ]
        if wanted:
            announce: list[Announce] = [partial(self._announce_preview, row.sample.id, row.step) for row, _ in wanted]
            collected = runner.collect([estimate for _, estimate in wanted], ["uint8"] * len(wanted))
            self._leaving.append((collected, announce))

    def _collect(self, runner: ModelRunner, finished: list[Sample]) -> Collected:
        """Starts to take the images of finished samples off the device."""
        images = [self._rows[sample.id].x[0] for sample in finished]
        return runner.collect(images, [sample.pixels for sample in finished])

    def _finish(self, collected: Collected, finished: list[Sample], ended: float) -> None:
        if not finished:
            return
        announce: list[Announce] = [
            partial(self._announce, sample.id, self._started[sample.id], ended) for sample in finished
        ]
        self._leaving.append((collected, announce))
        for sample in finished:
            self._forget(sample.id)

    def _hand_out(self) -> None:
        """Emits everything that is on its way off the device."""
        for collected, announce in self._leaving:
            for say, pixels in zip(announce, collected.wait(), strict=True):
                say(pixels)
        self._leaving.clear()

    def _announce_preview(self, sample: int, step: int, pixels: bytes | None) -> None:
        if pixels is not None:
            self._emit(Previewed(sample, Preview(step, pixels)))

    def _announce(self, sample: int, started: float, ended: float, pixels: bytes | None) -> None:
        if pixels is None:
            self._emit(Failed(sample, "the network's result is not finite"))
        else:
            self._emit(Finished(sample, SampleResult(pixels, started, ended)))

    def _forget(self, sample: int) -> None:
        self._rows.pop(sample, None)
        self._started.pop(sample, None)

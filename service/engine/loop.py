"""The engine's heart: schedule, run, postprocess, one step at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import torch

from service.engine.batching import padded
from service.engine.flight import Announce, Flight, Lead
from service.engine.protocol import Expired, Failed, Finished, FromEngine, Previewed, StepEnded, StepStarted
from service.engine.request import Preview, Sample, SampleResult
from service.engine.runner import ModelRunner, Row
from service.engine.scheduler import Scheduler


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
        self._flights: deque[Flight] = deque()  # in the order in which the device takes them
        self._lead = Lead()
        self._ended = 0.0  # when the last step that is over was
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
                    self._rows.pop(sample, None)

    def step(self) -> bool:
        """One forward of the model in turn. False when nothing is ready and nothing runs.

        A device that works while the CPU does something else is asked for a step before the one before it is over,
        so that it never waits; but as late as that allows, so that what arrives meanwhile has its place in it.
        """
        self._drop_expired()
        name = self._next_model()
        if name is None:
            self._lead.idle()
            return self._land(leave=0)
        runner, scheduler = self._runners[name], self._schedulers[name]
        batch = scheduler.schedule(runner.choose(scheduler.ready()))
        if batch[0].isolated or any(flight.isolated for flight in self._flights):
            self._land(leave=0)  # a suspect is alone in the air: so it can be told who killed an engine
        self._flights.append(self._launch(runner, scheduler, batch))
        self._lead.launched()
        self._land(leave=int(runner.overlaps))
        if runner.overlaps:
            self._begin(runner, scheduler.upcoming(runner.choose(scheduler.ready())))
            self._lead.wait(self._flights[-1].began(self._ended) + self._flights[-1].size.seconds)
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
                self._rows.pop(sample.id, None)
            if expired:
                self._emit(Expired(tuple(sample.id for sample in expired)))

    def _launch(self, runner: ModelRunner, scheduler: Scheduler, batch: list[Sample]) -> Flight:
        """Asks for one step, and for the images that it finishes to be taken off the device."""
        ids = tuple(sample.id for sample in batch)
        size = padded(len(batch), runner.times.now)
        self._emit(StepStarted(runner.info.name, ids, size.seconds))
        asked = time.monotonic()
        if any(sample.seed == self._fault_seed for sample in batch):
            raise RuntimeError("the fault seed was asked for")
        self._begin(runner, batch)
        rows = [self._rows[id_] for id_ in ids]
        denoised = runner.step(rows)
        finished = [self._rows.pop(sample.id) for sample in scheduler.update(batch)]
        flight = Flight(runner, rows, size, asked)
        self._preview(flight, denoised)
        if finished:
            flight.collect(
                [row.x[0] for row in finished],
                [row.sample.pixels for row in finished],
                [partial(self._announce, row) for row in finished],
            )
        return flight

    def _land(self, *, leave: int) -> bool:
        """Waits for steps, the oldest first, until `leave` are in the air, and emits what became of them.

        Whether there were any.
        """
        landed = len(self._flights) > leave
        while len(self._flights) > leave:
            flight = self._flights[0]
            flight.over()
            ended = time.monotonic()
            began, self._ended = flight.began(self._ended), ended
            for row in flight.rows:
                row.started = row.started or began
            flight.runner.times.observe(flight.size.size, ended - began)
            ids = tuple(row.sample.id for row in flight.rows)
            self._emit(StepEnded(flight.runner.info.name, ids, flight.size.size, ended - began))
            self._flights.popleft()
            flight.hand_out(ended)
        return landed

    def _begin(self, runner: ModelRunner, samples: Iterable[Sample]) -> None:
        """Gives tensors to those samples that have none yet."""
        for row in runner.begin([sample for sample in samples if sample.id not in self._rows]):
            self._rows[row.sample.id] = row

    def _preview(self, flight: Flight, denoised: torch.Tensor) -> None:
        wanted = [
            (row, estimate)
            for row, estimate in zip(flight.rows, denoised, strict=True)
            if row.sample.preview_every
            and row.step % row.sample.preview_every == 0
            and row.step < len(row.sample.sigmas)
        ]
        if wanted:
            announce: list[Announce] = [partial(self._announce_preview, row.sample.id, row.step) for row, _ in wanted]
            flight.collect([estimate for _, estimate in wanted], ["uint8"] * len(wanted), announce)

    def _announce_preview(self, sample: int, step: int, pixels: bytes | None, ended: float) -> None:
        if pixels is not None:
            self._emit(Previewed(sample, Preview(step, pixels)))

    def _announce(self, row: Row, pixels: bytes | None, ended: float) -> None:
        if pixels is None:
            self._emit(Failed(row.sample.id, "the network's result is not finite"))
        else:
            self._emit(Finished(row.sample.id, SampleResult(pixels, row.started, ended)))

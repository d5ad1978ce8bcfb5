"""The engine's heart: schedule, run, postprocess, step by step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from functools import partial

import torch

from service.engine.flight import Announce, Flight, Lead
from service.engine.lanes import Place
from service.engine.protocol import Emit, Expired, Failed, Finished, Previewed, StepEnded, StepStarted
from service.engine.request import Preview, Sample, SampleResult
from service.engine.runner import ModelRunner, Row
from service.engine.scheduler import Scheduler


class EngineLoop:
    """Steps the samples of several models, which have their turns. One thread calls everything here.

    What it has to say it hands to `emit`. A request's rows are the only persistent state; a batch is made anew
    for every step. On a CPU each lane steps a batch of its own, and gets another when that is over, whatever the
    others do; a GPU has its batches one after the other, the next one queued before the last one is over.
    """

    def __init__(
        self,
        runners: Iterable[ModelRunner],
        emit: Emit,
        fault_seed: int | None = None,
        bell: threading.Event | None = None,
    ) -> None:
        """`bell` is set by others when `step` should return, for there is news."""
        self._runners = {runner.info.name: runner for runner in runners}
        self._schedulers = {name: Scheduler() for name in self._runners}
        self._turns = deque(self._runners)
        self._rows: dict[int, Row] = {}
        self._flights: deque[Flight] = deque()  # in the order in which they were asked for
        self._queue = any(runner.network.lanes is None for runner in self._runners.values())
        self._lanes = min(runner.beside for runner in self._runners.values())
        self._bell = bell or threading.Event()
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
        """Asks for what there is room for, and waits until something is over, or for news.

        False when nothing is ready and nothing runs.
        """
        self._drop_expired()
        return self._step_queue() if self._queue else self._step_lanes()

    def _step_lanes(self) -> bool:
        """A batch for every lane that is free. What is over is announced after that, so that no lane waits for it."""
        over = [flight for flight in self._flights if flight.landed]
        for flight in over:
            self._flights.remove(flight)
            self._schedulers[flight.runner.info.name].release(row.sample for row in flight.rows)
        launched = self._fill_lanes(over)
        for flight in over:
            self._announce_end(flight)
        if not over and not launched and self._flights:
            self._bell.wait()
            self._bell.clear()
        return bool(over or self._flights)

    def _fill_lanes(self, over: list[Flight]) -> bool:
        """Whether there was a lane for anything; those that are `over` are announced now if that cannot wait."""
        launched = False
        while (free := self._lanes - sum(flight.place.lanes for flight in self._flights)) > 0:
            name = self._next_model()
            if name is None:
                break
            runner, scheduler = self._runners[name], self._schedulers[name]
            place = runner.choose(scheduler.ready(), free)
            batch = scheduler.schedule(place.rows)
            if batch[0].isolated or any(flight.isolated for flight in (*over, *self._flights)):
                while over:  # a suspect is alone in the air: so it can be told who killed an engine
                    self._announce_end(over.pop(0))
                self._land(leave=0)
            self._launch(runner, scheduler, batch, place)
            launched = True
        return launched

    def _step_queue(self) -> bool:
        """One batch of the model in turn, asked for before the one before it is over, so that the device never waits.

        But as late as that allows, so that what arrives meanwhile has its place in it.
        """
        name = self._next_model()
        if name is None:
            self._lead.idle()
            return self._land(leave=0)
        runner, scheduler = self._runners[name], self._schedulers[name]
        place = runner.choose(scheduler.ready())
        batch = scheduler.schedule(place.rows)
        if batch[0].isolated or any(flight.isolated for flight in self._flights):
            self._land(leave=0)  # a suspect is alone, as above
        self._launch(runner, scheduler, batch, place)
        self._lead.launched()
        self._land(leave=1)
        self._begin(runner, scheduler.upcoming(runner.times.now[-1].size))
        last = self._flights[-1]
        self._lead.wait(last.began(self._ended) + last.seconds, lambda: last.landed)
        return True

    def _next_model(self) -> str | None:
        for _ in range(len(self._turns)):
            self._turns.rotate(-1)
            if self._schedulers[self._turns[-1]].ready():
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

    def _launch(self, runner: ModelRunner, scheduler: Scheduler, batch: list[Sample], place: Place) -> None:
        """Asks for one step, and for the images that it finishes to be taken off the device."""
        ids = tuple(sample.id for sample in batch)
        size, seconds = runner.expected(len(batch), place)
        self._emit(StepStarted(runner.info.name, ids, seconds))
        if any(sample.seed == self._fault_seed for sample in batch):
            raise RuntimeError("the fault seed was asked for")
        self._begin(runner, batch)
        flight = Flight(runner, [self._rows[id_] for id_ in ids], place, size, seconds)
        finished = [self._rows.pop(sample.id) for sample in scheduler.update(batch)]
        work = partial(self._advance, flight, finished)
        if self._queue:
            flight.queue(work)
        else:
            scheduler.hold(batch)
            flight.start(work, self._bell.set)
        self._flights.append(flight)

    def _advance(self, flight: Flight, finished: list[Row]) -> None:
        """What a step is to the device, or what a lane does."""
        self._preview(flight, flight.runner.step(flight.rows))
        if finished:
            flight.collect(
                [row.x[0] for row in finished],
                [row.sample.pixels for row in finished],
                [partial(_finished, row) for row in finished],
            )

    def _land(self, *, leave: int) -> bool:
        """Waits for steps, the oldest first, until `leave` are in the air, and emits what became of them.

        Whether there were any.
        """
        landed = len(self._flights) > leave
        while len(self._flights) > leave:
            flight = self._flights.popleft()
            self._schedulers[flight.runner.info.name].release(row.sample for row in flight.rows)
            self._announce_end(flight)
        return landed

    def _announce_end(self, flight: Flight) -> None:
        """Emits what became of a flight that is over."""
        ended = flight.wait()
        began, self._ended = flight.began(self._ended), ended
        for row in flight.rows:
            row.started = row.started or began
        batch = flight.size * (flight.runner.beside // flight.place.lanes)
        flight.runner.observe(flight.place, batch, ended - began)
        ids = tuple(row.sample.id for row in flight.rows)
        over = StepEnded(flight.runner.info.name, ids, flight.size, ended - began, batch)
        self._emit(over, *flight.outcome(ended))

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
            announce: list[Announce] = [partial(_previewed, row.sample.id, row.step) for row, _ in wanted]
            flight.collect([estimate for _, estimate in wanted], ["uint8"] * len(wanted), announce)


def _previewed(sample: int, step: int, pixels: bytes | None, ended: float) -> Previewed | None:
    return Previewed(sample, Preview(step, pixels)) if pixels is not None else None


def _finished(row: Row, pixels: bytes | None, ended: float) -> Finished | Failed:
    if pixels is None:
        return Failed(row.sample.id, "the network's result is not finite")
    return Finished(row.sample.id, SampleResult(pixels, row.started, ended))

"""The `EngineClient` that serves HTTP: admits requests, spreads them over engines, replays what an engine lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence

from service.engine.admission import Admission, Limits
from service.engine.client import EngineObserver, Fatality
from service.engine.job import Job
from service.engine.links import Connect
from service.engine.load import Load
from service.engine.protocol import (
    Cancel,
    EngineConfig,
    Expired,
    Failed,
    Finished,
    FromEngine,
    Previewed,
    Ready,
    StepEnded,
    StepStarted,
    Submit,
)
from service.engine.request import ModelStatus, Sample
from service.engine.supervisor import Cause, Supervisor
from service.engine.times import StepTimes
from service.errors import (
    DeadlineExceeded,
    Draining,
    EngineLost,
    InferenceFailed,
    NotReady,
    ServiceError,
)
from service.models.info import ModelInfo

log = logging.getLogger(__name__)

# A request that ran alone when the engine was lost is to blame for a crash; for the rest it may be mere bad luck.
STRIKES_OUT = 3
SUBMITTED = 16  # samples of one message where each may carry pictures of its own
STRIKES = {Cause.CRASHED: 3, Cause.KILLED: 1, Cause.HANG: 2, Cause.SILENT: 1, Cause.FATAL: 0}


class EnginePool:
    """Several supervised engines, each with every model, behind one `submit`.

    A request stays whole on one engine, so that the bits of two engines never mix in one answer.
    """

    def __init__(
        self,
        models: Sequence[ModelInfo],
        configs: Sequence[EngineConfig],
        connect: Connect,
        limits: Limits,
        observer: EngineObserver,
    ) -> None:
        self._fatal: asyncio.Future[Fatality] | None = None
        self._admission = Admission(limits)
        self._observer = observer
        self._engines = [Supervisor(config, models, connect, self, limits.engine_restarts) for config in configs]
        self._tasks: list[asyncio.Task[None]] = []
        self._status: dict[str, ModelStatus] = {}
        self._jobs: dict[int, Job] = {}
        self._places: dict[int, Supervisor] = {}  # request -> engine; absent while it waits for one
        self._by_sample: dict[int, Job] = {}
        self._load = Load(observer)
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._ids = itertools.count(1)
        self._closed = False

    # -- what HTTP asks

    @property
    def fatal(self) -> asyncio.Future[Fatality]:
        """Resolved when nothing will ever be served again; there is one from `start` on."""
        assert self._fatal is not None, "not started"
        return self._fatal

    async def start(self) -> None:
        """Starts the engines and returns at once; the second time it does nothing."""
        if self._fatal is not None:
            return
        self._fatal = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._supervise(engine)) for engine in self._engines]

    def status(self, model: str) -> ModelStatus | None:
        """What the engines found out about a model; None before one was ready for the first time."""
        return self._status.get(model)

    @property
    def not_ready_reason(self) -> str | None:
        """None when an engine can take work; else why not."""
        if self._fatal is None:
            return "the service is starting"
        if self._fatal.done():
            return self._fatal.result().reason
        if self._closed:
            return "the service is stopping"
        if any(engine.ready for engine in self._engines):
            return None
        return "the engine is being replaced" if self._status else "the model is loading"

    def submit(self, samples: Sequence[Sample]) -> Job:
        """Accepts one request, or refuses it at once; see `EngineClient.submit`."""
        self._check_open(samples[0].model)
        self._admission.check(samples, self._restart_seconds())
        request, steps = next(self._ids), sum(len(sample.sigmas) for sample in samples)
        for sample in samples:
            sample.request, sample.request_steps = request, steps
            sample.id = next(self._ids)
        job = Job(samples, self._admission.outstanding, self._cancelled)
        self._jobs[request] = job
        self._by_sample.update((sample.id, job) for sample in samples)
        deadline = samples[0].deadline
        if deadline is not None:
            self._timers[request] = asyncio.get_running_loop().call_later(
                max(0.0, deadline - time.monotonic()), self._end, job, DeadlineExceeded("the deadline passed")
            )
        self._count(job)
        self._load.tell()
        self._dispatch(job, list(samples))
        return job

    async def close(self) -> None:
        """Ends the engines; what is unanswered fails with `Draining`."""
        self._closed = True
        for job in list(self._jobs.values()):
            self._end(job, Draining("the service is stopping"))
        for engine in self._engines:
            engine.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _check_open(self, model: str) -> None:
        if self._closed:
            raise Draining("the service is stopping")
        if self.fatal.done():
            raise EngineLost(self.fatal.result().reason)
        if model not in self._status:
            raise NotReady("the model is loading", retry_after=5)

    def _restart_seconds(self) -> float:
        """Until an engine can take work; 0.0 when one can."""
        if any(engine.ready for engine in self._engines):
            return 0.0
        return max(engine.load_seconds for engine in self._engines)

    # -- where work is

    def _dispatch(self, job: Job, samples: Sequence[Sample]) -> None:
        """To the ready engine with the least outstanding image-steps; without one it waits."""
        ready = [engine for engine in self._engines if engine.ready]
        if not ready:
            return
        engine = min(ready, key=lambda engine: engine.outstanding)
        engine.outstanding += job.outstanding()
        self._places[job.id] = engine
        job.fingerprint = self._status[job.model].fingerprint
        large = any(sample.edit is not None or sample.latents is not None for sample in samples)
        at_once = SUBMITTED if large else len(samples)  # not in pieces without need: the engine begins with the first
        for first in range(0, len(samples), at_once):
            engine.send(Submit(tuple(samples[first : first + at_once])))

    def _displace(self, job: Job) -> Supervisor | None:
        """Takes a request off its engine's account."""
        engine = self._places.pop(job.id, None)
        if engine is not None:
            engine.outstanding -= job.outstanding()
        return engine

    def _count(self, job: Job) -> None:
        """Books what a request still needs."""
        self._admission.count(job)
        self._load.left(job.id, job.images_left)

    def _cancelled(self, job: Job) -> None:
        self._end(job, None)

    def _end(self, job: Job, error: ServiceError | None) -> None:
        """Ends a request early: frees its places in the engine and forgets it."""
        if job.ended:
            return
        unfinished = job.unfinished()
        engine = self._displace(job)
        if engine is not None:
            engine.send(Cancel(tuple(sample.id for sample in unfinished)))
        job.fail(error or InferenceFailed("the request was cancelled"))
        self._forget(job)

    def _forget(self, job: Job) -> None:
        del self._jobs[job.id]
        for sample in job.samples:
            del self._by_sample[sample]
            self._load.stopped(sample)
        timer = self._timers.pop(job.id, None)
        if timer is not None:
            timer.cancel()
        self._admission.forget(job)
        self._load.left(job.id, 0)
        self._load.tell()

    # -- what supervisors tell

    def on_ready(self, engine: Supervisor, ready: Ready) -> None:
        """Publishes what it found out, and sends what waits."""
        for status in ready.models:
            known = self._status.get(status.name)
            if known is not None and known.fingerprint != status.fingerprint:
                if any(other.ready for other in self._engines if other is not engine):
                    self.on_fatal(f"the devices give different bits for {status.name}", budget_spent=False)
                    return
                fields = {"model": status.name, "fingerprint": status.fingerprint}
                log.warning("numerics changed", extra={"fields": fields})
                self._replay_whole(status.name)
            self._status[status.name] = status
            self._admission.times[status.name] = StepTimes(status.batch_sizes)
        self._admission.engines = sum(engine.load_seconds > 0 for engine in self._engines)
        self._observer.engines_ready(sum(engine.ready for engine in self._engines))
        for job in [job for job in self._jobs.values() if job.id not in self._places]:
            self._replay(job, whole=False)
        self._load.tell()

    def _replay_whole(self, model: str) -> None:
        for job in [job for job in self._jobs.values() if job.model == model]:
            try:
                job.replay(whole=True)
            except ServiceError as error:
                self._end(job, error)

    def _replay(self, job: Job, *, whole: bool) -> None:
        samples = job.replay(whole=whole)
        self._count(job)
        self._dispatch(job, samples)

    def on_message(self, engine: Supervisor, message: FromEngine) -> None:
        """Books steps, hands out results."""
        if isinstance(message, StepEnded):
            self._stepped(engine, message)
        elif isinstance(message, Finished):
            job = self._by_sample.get(message.sample)
            if job is not None:
                self._load.stopped(message.sample)
                if job.finished(message.sample, message.result):
                    self._displace(job)
                    self._forget(job)
                else:
                    self._load.left(job.id, job.images_left)
        elif isinstance(message, Previewed):
            job = self._by_sample.get(message.sample)
            if job is not None:
                job.previewed(message.sample, message.preview)
        elif isinstance(message, StepStarted):
            for sample in message.samples:
                if sample in self._by_sample:
                    self._load.begun(sample, self._by_sample[sample].id)
        elif isinstance(message, Failed):
            job = self._by_sample.get(message.sample)
            if job is not None:
                self._end(job, InferenceFailed(message.reason))
        elif isinstance(message, Expired):
            for job in self._jobs_of(message.samples):
                self._end(job, DeadlineExceeded("the deadline passed"))

    def _jobs_of(self, samples: Sequence[int]) -> list[Job]:
        jobs = [self._by_sample[sample] for sample in samples if sample in self._by_sample]
        return list({job.id: job for job in jobs}.values())

    def _stepped(self, engine: Supervisor, message: StepEnded) -> None:
        self._admission.times[message.model].observe(message.batch, message.seconds)
        for sample in message.samples:
            if sample in self._by_sample:
                self._by_sample[sample].stepped(sample)
                engine.outstanding -= 1
        for job in self._jobs_of(message.samples):
            self._admission.count(job)
        self._observer.step(message.model, rows=len(message.samples), size=message.size, seconds=message.seconds)
        self._load.tell()

    def on_lost(self, engine: Supervisor, suspects: tuple[int, ...], cause: Cause) -> None:
        """Fails the request that ran alone; sets the others apart or back, for the next engine."""
        self._observer.engine_lost(cause.value)
        self._observer.engines_ready(sum(engine.ready for engine in self._engines))
        accused = self._jobs_of(suspects)
        orphans = [self._jobs[request] for request, place in self._places.items() if place is engine]
        for job in orphans:
            self._displace(job)
            for sample in job.samples:
                self._load.stopped(sample)
        engine.outstanding = 0
        for job in accused:
            if len(accused) == 1 and job.isolated:
                job.strikes += STRIKES[cause]
            if job.strikes >= STRIKES_OUT:
                self._end(job, EngineLost("the engine was lost each time it ran this request"))
            else:
                job.isolate()
        for job in orphans:
            if not job.ended:
                self._replay(job, whole=False)
        self._load.tell()

    def on_fatal(self, reason: str, *, budget_spent: bool) -> None:
        """Nothing will be served any more: ends all, and tells whoever waits on `fatal`."""
        if not self.fatal.done():
            self.fatal.set_result(Fatality(reason, budget_spent))
        for job in list(self._jobs.values()):
            self._end(job, EngineLost(reason))

    async def _supervise(self, engine: Supervisor) -> None:
        try:
            await engine.run()
        except Exception as error:
            log.exception("the supervisor failed")
            self.on_fatal(f"cannot keep an engine on {engine.config.device}: {error}", budget_spent=False)

"""Whether a request is accepted: quotas, deadlines and `max_queue_time`, by the times that steps take at present."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from service.engine.backlog import Backlog
from service.engine.batching import best_rate, padded
from service.engine.job import Job
from service.engine.request import Sample
from service.engine.times import StepTimes
from service.errors import OutOfReach, Overloaded, QuotaExceeded


class Limits(msgspec.Struct, frozen=True):
    """What is accepted; the settings of the same names. Seconds, image-steps, counts."""

    request_timeout: float = 300.0
    max_queue_time: float = 60.0
    max_client_image_steps: int = 0
    engine_restarts: int = 10


class Admission:
    """Outstanding work in seconds of the engines, and what may still be added to it."""

    def __init__(self, limits: Limits) -> None:
        self.times: dict[str, StepTimes] = {}  # of each model
        self.engines = 1  # that share the work
        self._limits = limits
        self._backlog = Backlog(self._rate)

    @property
    def outstanding(self) -> int:
        """Image-steps of all accepted requests that are not done yet."""
        return self._backlog.steps

    def count(self, job: Job) -> None:
        """Notes what an accepted request still needs."""
        self._backlog.set(job.client, job.id, job.model, job.outstanding(), job.image_steps)

    def forget(self, job: Job) -> None:
        """The request has ended."""
        self._backlog.forget(job.id)

    def check(self, samples: Sequence[Sample], restart: float) -> None:
        """Returns if one request's samples can be accepted, when engines need `restart` seconds first.

        Raises `QuotaExceeded` or `Overloaded` with the seconds after which it is worth another try, and
        `OutOfReach` for a deadline that even an idle server would miss.
        """
        first = samples[0]
        steps = sum(len(sample.sigmas) for sample in samples)
        self._check_quota(first.client, steps)
        alone = self._idle_seconds(samples)
        work = steps / self._rate(first.model)
        finish = restart + max(alone, self._backlog.finish(first.client, first.model, steps))
        if first.deadline is not None:
            left = first.deadline - time.monotonic()
            if alone > left:
                raise OutOfReach("The deadline is nearer than the request's end.", seconds=alone)
            if finish > left:
                raise Overloaded("the backlog would break the request's deadline", retry_after=finish - left)
        wait = finish - alone
        if wait > self._limits.max_queue_time:
            raise Overloaded("the backlog is over max_queue_time", retry_after=wait - self._limits.max_queue_time)
        excess = self._backlog.total() + work - self._limits.request_timeout
        if excess > 0 and self.outstanding:
            raise Overloaded("the backlog would break the deadlines of accepted requests", retry_after=excess)

    def _check_quota(self, client: str, steps: int) -> None:
        quota = self._limits.max_client_image_steps
        if quota and steps > quota:  # no waiting will help
            raise QuotaExceeded(f"the request needs {steps} image-steps, and a client may have {quota} outstanding")
        if quota:
            outstanding, seconds = self._backlog.of(client)
            if outstanding + steps > quota:
                raise QuotaExceeded(
                    f"more than {quota} image-steps of this client are outstanding", retry_after=seconds
                )

    def _rate(self, model: str) -> float:
        """Image-steps per second of all engines together."""
        return best_rate(self.times[model].now) * self.engines

    def _idle_seconds(self, samples: Sequence[Sample]) -> float:
        """Seconds on an idle engine: bounded by throughput, and by the longest chain of steps."""
        sizes = self.times[samples[0].model].now
        steps = [len(sample.sigmas) for sample in samples]
        smallest = padded(min(len(samples), sizes[-1].size), sizes)
        return max(sum(steps) / best_rate(sizes), max(steps) * smallest.seconds)

"""Decides who steps next. Knows samples and limits; nothing of tensors, HTTP or clocks."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice

from service.engine.deadlines import Deadlines
from service.engine.request import Sample

Turns = OrderedDict[int, None]  # requests, the next in turn first


class Scheduler:
    """Shares one model's batches: clients in turn, a client's requests in turn, a request's samples in order.

    A sample stays until `update` has counted its last step or `abort` removed it. Samples of a request are
    taken in order, so those that have begun end before others begin, and few tensors are alive at a time.
    A request marked `isolated` never shares a batch; isolated and ordinary batches alternate.
    """

    def __init__(self) -> None:
        self._samples: dict[int, Sample] = {}
        self._steps_left: dict[int, int] = {}
        self._requests: dict[int, dict[int, Sample]] = {}
        self._turns: OrderedDict[str, Turns] = OrderedDict()  # client -> its requests; the next in turn first
        self._isolated: deque[int] = deque()
        self._isolated_last = False
        self._deadlines = Deadlines()

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Sample) -> None:
        """Takes a sample in; it is ready at once."""
        self._samples[sample.id] = sample
        self._steps_left[sample.id] = len(sample.sigmas)
        if sample.deadline is not None:
            self._deadlines.add(sample.deadline, sample.id)
        members = self._requests.get(sample.request)
        if members is None:
            members = self._requests[sample.request] = {}
            self._enqueue(sample)
        members[sample.id] = sample

    def _enqueue(self, sample: Sample) -> None:
        if sample.isolated:
            self._isolated.append(sample.request)
            return
        self._turns.setdefault(sample.client, OrderedDict())[sample.request] = None

    def abort(self, sample_id: int) -> Sample | None:
        """Removes a sample wherever it is in its life; None if it is not here (any more)."""
        sample = self._samples.pop(sample_id, None)
        if sample is None:
            return None
        del self._steps_left[sample_id]
        if sample.deadline is not None:
            self._deadlines.discard(sample_id)
        members = self._requests[sample.request]
        del members[sample_id]
        if not members:
            self._dequeue(sample)
        return sample

    def _dequeue(self, sample: Sample) -> None:
        del self._requests[sample.request]
        if sample.isolated:
            self._isolated.remove(sample.request)
            return
        turns = self._turns[sample.client]
        del turns[sample.request]
        if not turns:
            del self._turns[sample.client]

    def ready(self) -> int:
        """How many samples the next batch could hold if it had no limit."""
        if self._next_is_isolated():
            return len(self._requests[self._isolated[0]])
        return len(self._samples) - sum(len(self._requests[request]) for request in self._isolated)

    def _next_is_isolated(self) -> bool:
        return bool(self._isolated) and (not self._turns or not self._isolated_last)

    def schedule(self, max_rows: int) -> list[Sample]:
        """The next batch, at most `max_rows` samples; all of them ready to step."""
        self._isolated_last = self._next_is_isolated()
        if self._isolated_last:
            self._isolated.rotate(-1)
            return list(self._requests[self._isolated[-1]].values())[:max_rows]
        batch: list[Sample] = []
        unscheduled: dict[int, Iterator[Sample]] = {}  # of the requests that had a turn
        idle = 0
        while len(batch) < max_rows and idle < len(self._turns):
            client, turns = next(iter(self._turns.items()))
            self._turns.move_to_end(client)
            sample = self._next_of(turns, unscheduled)
            idle = 0 if sample else idle + 1
            if sample:
                batch.append(sample)
        return batch

    def _next_of(self, turns: Turns, unscheduled: dict[int, Iterator[Sample]]) -> Sample | None:
        for _ in range(len(turns)):
            request = next(iter(turns))
            turns.move_to_end(request)
            if request not in unscheduled:
                unscheduled[request] = iter(self._requests[request].values())
            sample = next(unscheduled[request], None)
            if sample is not None:
                return sample
        return None

    def upcoming(self, count: int) -> Iterator[Sample]:
        """The first samples, `count` at most, of the next batch as far as that is known now. Nobody's turn passes.

        Isolated requests are left out.
        """
        first = (
            in_turn(iter(self._requests[request].values()) for request in islice(turns, count))
            for turns in islice(self._turns.values(), count)
        )
        return islice(in_turn(first), count)

    def update(self, stepped: Iterable[Sample]) -> list[Sample]:
        """Counts one step of each; returns and forgets the finished ones. Aborted ones are passed over."""
        finished = []
        for sample in stepped:
            if sample.id not in self._samples:
                continue
            self._steps_left[sample.id] -= 1
            if not self._steps_left[sample.id]:
                finished.append(sample)
                self.abort(sample.id)
        return finished

    def step_index(self, sample: Sample) -> int:
        """How many steps of a sample are done."""
        return len(sample.sigmas) - self._steps_left[sample.id]

    def expired(self, now: float) -> list[Sample]:
        """Samples whose deadline is not after `now`; the caller aborts them."""
        return [self._samples[sample] for sample in self._deadlines.passed(now)]


def in_turn(streams: Iterable[Iterator[Sample]]) -> Iterator[Sample]:
    """One sample of each stream in turn until all are empty."""
    waiting = deque(streams)
    while waiting:
        stream = waiting.popleft()
        for sample in islice(stream, 1):
            yield sample
            waiting.append(stream)

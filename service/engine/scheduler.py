"""Decides who steps next. Knows samples and limits; nothing of tensors, HTTP or clocks."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice

from service.engine.deadlines import Deadlines
from service.engine.request import Sample
from service.engine.size_classes import row_cost, size_class


class ClientQueue:
    """A client's requests by size class, in each the oldest first.

    `passes` are those of stride scheduling (Waldspurger and Weihl 1995): the class with the least goes next, and
    pays `row_cost` for it.
    """

    def __init__(self) -> None:
        self.classes: dict[int, OrderedDict[int, None]] = {}
        self.passes: dict[int, int] = {}

    def add(self, request: int, of_class: int) -> None:
        """A class that had no requests has saved nothing up: it starts level with the next in turn."""
        if of_class not in self.classes:
            level = min((self.passes[other] for other in self.classes), default=0)
            self.passes[of_class] = max(self.passes.get(of_class, 0), level)
            self.classes[of_class] = OrderedDict()
        self.classes[of_class][request] = None

    def remove(self, request: int, of_class: int) -> None:
        """The request is done, or given up."""
        del self.classes[of_class][request]
        if not self.classes[of_class]:
            del self.classes[of_class]


class Scheduler:
    """Shares one model's batches: clients in turn, a client's size classes by their shares, oldest requests first.

    A sample stays until `update` has counted its last step or `abort` removed it. Samples of a request are
    taken in order, so those that have begun end before others begin, and few tensors are alive at a time.
    A request marked `isolated` never shares a batch; isolated and ordinary batches alternate.
    """

    def __init__(self) -> None:
        self._samples: dict[int, Sample] = {}
        self._steps_left: dict[int, int] = {}
        self._requests: dict[int, dict[int, Sample]] = {}
        self._turns: OrderedDict[str, ClientQueue] = OrderedDict()  # the client next in turn first
        self._isolated: deque[int] = deque()
        self._isolated_last = False
        self._deadlines = Deadlines()
        self._held: dict[int, int] = {}  # sample -> its request

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
        queue = self._turns.setdefault(sample.client, ClientQueue())
        queue.add(sample.request, size_class(sample.request_steps))

    def abort(self, sample_id: int) -> Sample | None:
        """Removes a sample wherever it is in its life; None if it is not here (any more)."""
        sample = self._samples.pop(sample_id, None)
        if sample is None:
            return None
        del self._steps_left[sample_id]
        self._held.pop(sample_id, None)
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
        queue = self._turns[sample.client]
        queue.remove(sample.request, size_class(sample.request_steps))
        if not queue.classes:
            del self._turns[sample.client]

    def ready(self) -> int:
        """How many samples the next batch could hold if it had no limit."""
        if self._next_is_isolated():
            return sum(sample not in self._held for sample in self._requests[self._isolated[0]])
        apart = sum(len(self._requests[request]) for request in self._isolated)
        held = sum(request not in self._isolated for request in self._held.values())
        return len(self._samples) - apart - held

    def _next_is_isolated(self) -> bool:
        return bool(self._isolated) and (not self._turns or not self._isolated_last)

    def schedule(self, max_rows: int) -> list[Sample]:
        """The next batch, at most `max_rows` samples; all of them ready to step."""
        self._isolated_last = self._next_is_isolated()
        if self._isolated_last:
            self._isolated.rotate(-1)
            return list(islice(self._free(self._isolated[-1]), max_rows))
        batch: list[Sample] = []
        streams: dict[str, Iterator[Sample]] = {}  # of the clients that had a turn
        idle = 0
        while len(batch) < max_rows and idle < len(self._turns):
            client, queue = next(iter(self._turns.items()))
            self._turns.move_to_end(client)
            if client not in streams:
                streams[client] = self._in_order(queue, queue.passes)
            sample = next(streams[client], None)
            idle = 0 if sample else idle + 1
            if sample:
                batch.append(sample)
        return batch

    def _in_order(self, queue: ClientQueue, passes: dict[int, int]) -> Iterator[Sample]:
        """A client's samples, the next in turn first; `passes` are paid for each that is taken."""
        streams = {
            of_class: (sample for request in requests for sample in self._free(request))
            for of_class, requests in queue.classes.items()
        }
        dry: list[int] = []  # classes with all they have in the batch; what they cannot use they do not save up
        while streams:
            chosen = min(streams, key=lambda of_class: (passes[of_class], of_class))
            sample = next(streams[chosen], None)
            if sample is None:
                del streams[chosen]
                dry.append(chosen)
                continue
            passes[chosen] += row_cost(chosen)
            level = min(passes[of_class] for of_class in streams)
            passes.update((of_class, max(passes[of_class], level)) for of_class in dry)
            yield sample

    def _free(self, request: int) -> Iterator[Sample]:
        return (sample for sample in self._requests[request].values() if sample.id not in self._held)

    def hold(self, samples: Iterable[Sample]) -> None:
        """They are in a step whose end has to be known before the next: until `release` no batch has them."""
        self._held.update((sample.id, sample.request) for sample in samples if sample.id in self._samples)

    def release(self, samples: Iterable[Sample]) -> None:
        """That step is over."""
        for sample in samples:
            self._held.pop(sample.id, None)

    def upcoming(self, count: int) -> Iterator[Sample]:
        """The first samples, `count` at most, of the next batch as far as that is known now. Nobody's turn passes.

        Isolated requests are left out.
        """
        first = (self._in_order(queue, dict(queue.passes)) for queue in islice(self._turns.values(), count))
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

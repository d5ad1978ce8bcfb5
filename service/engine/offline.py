"""The engine without a server: samples in, results out, in this thread. The bits are the server's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, islice

import torch

from service.engine.loop import EngineLoop
from service.engine.protocol import EngineConfig, Failed, Finished, FromEngine
from service.engine.request import ModelStatus, Sample, SampleResult
from service.engine.worker import prepare_runner, resolve, settle
from service.errors import InferenceFailed
from service.models.info import ModelInfo


class OfflineEngine:
    """One model on one device, loaded, certified and warm after construction."""

    def __init__(self, info: ModelInfo, config: EngineConfig) -> None:
        config = resolve(config)
        settle(config)
        with torch.inference_mode():
            runner, self.status = prepare_runner(info, config)
        self._events: list[FromEngine] = []
        self._loop = EngineLoop([runner], self._note)
        self._ids = count()

    status: ModelStatus

    def _note(self, *messages: FromEngine) -> None:
        self._events += messages

    def run(self, samples: Iterable[Sample]) -> Iterator[tuple[int, SampleResult]]:
        """Results as they finish, with the sample's place in `samples`, which may be endless.

        Few more samples than fit a batch are taken in at a time. Raises InferenceFailed.
        """
        window = 2 * self.status.batch_sizes[-1].size
        coming = iter(samples)
        places: dict[int, int] = {}
        place = 0
        while True:
            for sample in islice(coming, window - len(places)):
                sample.id = next(self._ids)
                places[sample.id] = place
                place += 1
                self._loop.submit([sample])
            if not places:
                return
            with torch.inference_mode():
                self._loop.step()
            for event in self._events:
                if isinstance(event, Finished):
                    yield places.pop(event.sample), event.result
                elif isinstance(event, Failed):
                    raise InferenceFailed(event.reason)
            self._events.clear()

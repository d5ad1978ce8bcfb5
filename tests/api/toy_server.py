"""A real server around an engine that only waits: `python -m tests.api.toy_server SETTING=VALUE...`.

It is what `onestep serve` runs, but for the engine, which makes a picture in `seed` milliseconds and says it is
lost for good when it is asked for seed 666 (the restart budget) or 667 (the model). Prints the port when it listens.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

import uvloop

from service.api.app import create_app, create_metrics_app
from service.api.listening import listen
from service.api.server import Server
from service.engine.client import Fatality
from service.engine.request import Sample, SampleResult
from service.errors import Draining, EngineLost
from service.exits import ExitCode
from service.logs import configure_logging
from service.models.info import ModelInfo
from service.settings import load_settings
from tests.api.counting_engine import CountingEngine, CountingSubmission, model_info

FATAL = {666: True, 667: False}


class WaitingSubmission(CountingSubmission):
    """Takes as many milliseconds as its largest seed."""

    async def results(self) -> list[SampleResult]:
        """Pictures after a wait, unless the engine ends before."""
        engine = self.engine
        assert isinstance(engine, WaitingEngine)
        wait = asyncio.ensure_future(asyncio.sleep(max(sample.seed for sample in self.samples) / 1000))
        ended = asyncio.ensure_future(engine.ended.wait())
        await asyncio.wait((wait, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not wait.done():
            wait.cancel()
            raise EngineLost("the engine is lost") if engine.fatal.done() else Draining("the service is stopping")
        return await super().results()


class WaitingEngine(CountingEngine):
    """An engine client whose pictures take time, and which can be lost for good."""

    def __init__(self, info: ModelInfo) -> None:
        super().__init__(info)
        self.ended = asyncio.Event()
        self._fatal: asyncio.Future[Fatality] = asyncio.get_running_loop().create_future()

    @property
    def fatal(self) -> asyncio.Future[Fatality]:
        """Resolved by the seeds of `FATAL`."""
        return self._fatal

    def submit(self, samples: Sequence[Sample]) -> CountingSubmission:
        """Accepts everything."""
        seed = samples[0].seed
        if seed in FATAL:
            self._fatal.set_result(Fatality("asked for it", budget_spent=FATAL[seed]))
            self.ended.set()
        self.submissions.append(WaitingSubmission(self, samples))
        return self.submissions[-1]

    async def close(self) -> None:
        """Fails what waits."""
        self.ended.set()


async def main(arguments: list[str]) -> ExitCode:
    """One life of the server."""
    settings = load_settings(dict(pair.split("=", 1) for pair in arguments), {})
    configure_logging(settings.log_format, settings.log_level)
    info = model_info()
    app = create_app(settings, {info.name: info}, WaitingEngine(info))
    listening = listen("127.0.0.1", 0)
    metrics = None
    if settings.metrics_port is not None:
        metrics = (create_metrics_app(app), listen("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in (listening, *(metrics[1:] if metrics else ()))]
    print(*ports, flush=True)
    return await Server(app, listening, metrics).run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(main(sys.argv[1:]))
        sys.stderr.flush()
        os._exit(code)

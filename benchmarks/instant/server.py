"""The real application and the real server over `benchmarks.instant.engine`: `python -m benchmarks.instant.server`.

Prints its port. With `--stages` functions are wrapped that each are one stage of a request (see `STAGES`); SIGUSR1 then
makes it print one line of JSON, what each stage has taken since the last one, and begin anew.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import uvloop

from service.api.app import create_app
from service.api.listening import listen
from service.api.server import Server
from service.engine import links
from service.engine.links import OnLost, OnMessage, ProcessLink
from service.exits import ExitCode
from service.launch import make_engine_client
from service.logs import configure_logging
from service.metrics import EngineMetrics, Metrics
from service.models.places import load_infos
from service.settings import load_settings

# Synchronous functions, none of which calls another one of them, as (module, name in it); a class has a dot.
STAGES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "parse": (("service.api.routes.generate", "read_query"), ("service.api.strict_json", "parse_object")),
    "validate": (("service.api.routes.generate", "parse_body"), ("service.api.routes.generate", "negotiate")),
    "plan": (  # of an image URL with its parsing and validation
        ("service.api.routes.generate", "plan_generate"),
        ("service.api.routes.images", "_plan"),
        ("service.api.routes.images", "_etag"),
    ),
    "admit and submit": (("service.engine.pool", "EnginePool.submit"),),
    "engine's messages": (("service.engine.links", "_FrameReader.data_received"),),
    "encode PNG": (("service.api.rendering", "encode"),),
    "build JSON and base64": (("service.api.rendering", "_json_body"),),
    "build response": (
        ("service.api.responding", "Response"),
        ("service.api.responding", "image_headers"),
        ("service.api.routes.images", "Response"),
        ("service.api.routes.images", "image_headers"),
    ),
}


class Stopwatch:
    """Processor and wall time of each stage, over all threads."""

    def __init__(self) -> None:
        self._spent: dict[str, list[float]] = {}  # milliseconds of processor, of wall; calls

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time booked; its thread's processor time, which other threads do not enter."""

        @functools.wraps(function, updated=())
        def timed(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
            try:
                return function(*args, **kwargs)
            finally:
                spent = self._spent.setdefault(stage, [0.0, 0.0, 0])
                spent[0] += (time.thread_time_ns() - cpu) / 1e6
                spent[1] += (time.perf_counter_ns() - wall) / 1e6
                spent[2] += 1

        return timed

    def install(self) -> None:
        """Puts the wrapped functions in place of their originals."""
        for stage, places in STAGES.items():
            for module, name in places:
                *owner, attribute = name.split(".")
                place = functools.reduce(getattr, owner, import_module(module))
                setattr(place, attribute, self.wrap(stage, getattr(place, attribute)))

    def tell(self) -> None:
        """Prints and begins anew."""
        spent, self._spent = self._spent, {}
        rows = {stage: dict(zip(("cpu_ms", "wall_ms", "calls"), each, strict=True)) for stage, each in spent.items()}
        print(json.dumps(rows), flush=True)


async def connect(on_message: OnMessage, on_lost: OnLost) -> ProcessLink:
    """As `ProcessLink.connect`, with the engine that costs nothing."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.instant.engine", str(theirs.fileno())),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: links._FrameReader(on_message, on_lost), sock=ours)
    return ProcessLink(process, transport)


async def serve(stages: bool) -> ExitCode:
    """One life of the server, with the default settings."""
    settings = load_settings({}, {})
    configure_logging(settings.log_format, settings.log_level)
    infos, metrics = load_infos(settings.model), Metrics()
    engine = make_engine_client(settings, infos, EngineMetrics(metrics), connect)
    app = create_app(settings, infos, engine, metrics)
    if stages:
        stopwatch = Stopwatch()
        stopwatch.install()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stopwatch.tell)
    listening = listen("127.0.0.1", 0)
    print(listening.getsockname()[1], flush=True)
    return await Server(app, listening).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", action="store_true")
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(serve(args.stages))
        os._exit(code)


if __name__ == "__main__":
    main()

"""An engine that costs nothing: every sample is a picture made long ago. `python -m benchmarks.instant.engine FD`.

It speaks the engine's protocol over the engine's socket in a process of its own, so that the HTTP process before it
does everything that it does before a real one.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from socket import socket

from PIL import Image

from service.engine.process import Channel
from service.engine.protocol import Configure, Finished, Ping, Pong, Ready, StepEnded, StepStarted, Submit
from service.engine.request import ModelStatus, SampleResult, SizeTime
from service.models.info import ModelInfo

SHEET = Path(__file__).parents[2] / "docs" / "images" / "one-step.png"  # pictures of the bundled model
SECONDS = 1e-4  # that it says a step takes; admission reckons with it


def pictures(info: ModelInfo) -> list[bytes]:
    """Pixels uint8 `[H, W, C]` of some real pictures, for `info`'s size."""
    mode = "L" if info.channels == 1 else "RGB"
    with Image.open(SHEET) as sheet:
        tiles = [
            sheet.crop((x, y, x + 32, y + 32)) for y in range(0, sheet.height, 32) for x in range(0, sheet.width, 32)
        ]
    return [tile.convert(mode).resize((info.image_size, info.image_size)).tobytes() for tile in tiles]


def main(fd: int) -> None:
    """Answers until the socket closes."""
    channel = Channel(socket(fileno=fd))
    configure = channel.receive()
    assert isinstance(configure, Configure)
    sizes = (SizeTime(1, SECONDS), SizeTime(64, SECONDS))
    made = {info.name: pictures(info) for info in configure.models}
    channel.send(Ready(tuple(ModelStatus(info.name, "instant", "none", "uint8", sizes) for info in configure.models)))
    while True:
        message = channel.receive()
        if isinstance(message, Ping):
            channel.send(Pong())
        elif isinstance(message, Submit):
            serve(channel, message, made)


def serve(channel: Channel, submit: Submit, made: dict[str, list[bytes]]) -> None:
    """All steps and all pictures of a request."""
    name = submit.samples[0].model
    ids, now = tuple(sample.id for sample in submit.samples), time.monotonic()
    for _ in submit.samples[0].sigmas:
        channel.send(StepStarted(name, ids, SECONDS))
        channel.send(StepEnded(name, ids, len(ids), SECONDS, len(ids)))
    for sample in submit.samples:
        pixels = made[name][sample.seed % len(made[name])]
        channel.send(Finished(sample.id, SampleResult(pixels, now, now)))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):  # the HTTP process is gone
        main(int(sys.argv[1]))

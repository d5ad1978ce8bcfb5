"""A process that decodes pictures: `python -m service.api.picture_input_worker BYTES`.

It reads orders from its standard input and writes answers to its standard output, each with its length before it,
until the input ends. It may take `BYTES` of address space more than it has at its start, may write no file, and
holds nothing from one picture to the next.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec
from PIL import Image

from service.api.picture_input import Order, Picture, Refusal
from service.api.picture_input_decode import decode

LENGTH = struct.Struct(">I")
_PR_SET_PDEATHSIG = 1


def main(memory: int) -> int:
    """Serves until the input ends; a picture that takes too much memory ends it with 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the input's end is what counts
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    Image.preinit()
    Image.init()  # every plugin is there before memory is short
    _limit(memory)
    orders, answers = sys.stdin.buffer, sys.stdout.buffer
    decoder = msgspec.msgpack.Decoder(Order)
    while (order := _read(orders)) is not None:
        try:
            answer = decode(decoder.decode(order))
        except MemoryError:
            return 1
        _write(answers, answer)
        del order, answer
    return 0


def _limit(memory: int) -> None:
    if sys.platform != "linux":
        return  # elsewhere the time limit and the limit on pixels have to do
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(source: BinaryIO) -> bytes | None:
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    return source.read(LENGTH.unpack(head)[0])


def _write(target: BinaryIO, answer: Picture | Refusal) -> None:
    body = msgspec.msgpack.encode(answer)
    target.write(LENGTH.pack(len(body)) + body)
    target.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

"""The engine as a process: `python -m service.engine.process FD`, spawned by `service.engine.links`.

Its main thread loads and steps, a second one reads the socket. It ignores SIGINT and SIGTERM (the client drains
it) and leaves as soon as the socket closes, also in the middle of a step. Torch is imported only after the
reader runs, so that pings are answered meanwhile.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading

from service.engine.inbox import Inbox
from service.engine.protocol import (
    HEADER,
    Configure,
    Crashed,
    Fatal,
    FromEngine,
    Ping,
    Pong,
    ToEngine,
    body_length,
    decode_to_engine,
    frame,
)
from service.engine.quick_import import import_diffusers_quickly
from service.errors import FatalModelError
from service.logs import configure_logging

NICENESS = 5  # the HTTP process stays responsive on a busy machine
FAULT_SEED = "_ONESTEP_FAULT_SEED"  # test hook: a sample of this seed crashes the engine when it steps
_PR_SET_PDEATHSIG = 1


class Channel:
    """Whole messages over a socket; any thread may send."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, *messages: FromEngine) -> None:
        """Blocks until they are with the kernel."""
        data = b"".join(map(frame, messages))
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> ToEngine:
        """The next message. Raises EOFError when the client is gone."""
        return decode_to_engine(self._exactly(body_length(self._exactly(HEADER.size))))

    def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]
        return bytes(data)


def main(fd: int) -> int:
    """Serves until the socket closes; the exit code is 0, or 1 for a crash and a model that can never be served."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent()
    os.nice(NICENESS)
    channel = Channel(socket.socket(fileno=fd))
    try:
        configure = channel.receive()
    except EOFError:  # the service has left before it said anything
        return 0
    if not isinstance(configure, Configure):
        raise TypeError(f"the first message is a {type(configure).__name__}")
    configure_logging(configure.config.log_format, configure.config.log_level)
    inbox = Inbox()
    threading.Thread(target=_read, args=(channel, inbox), daemon=True, name="reader").start()

    import_diffusers_quickly()
    from service.engine.worker import run_engine

    fault_seed = os.environ.get(FAULT_SEED)
    try:
        run_engine(configure, inbox, channel.send, None if fault_seed is None else int(fault_seed))
    except FatalModelError as error:
        channel.send(Fatal(str(error)))
        return 1
    except Exception as error:
        logging.getLogger(__name__).exception("the engine crashed")
        channel.send(Crashed(f"{type(error).__name__}: {error}"))
        return 1
    return 0


def die_with_parent() -> None:
    """Linux: a stopped engine cannot see its socket close, so the kernel ends it with the HTTP process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(channel: Channel, inbox: Inbox) -> None:
    try:
        while True:
            message = channel.receive()
            if isinstance(message, Ping):
                channel.send(Pong())
            else:
                inbox.put(message)
    except (EOFError, OSError):
        os._exit(0)  # the client is gone: nobody is left to answer, not even the step that runs
    except BaseException:
        logging.getLogger(__name__).exception("cannot read from the client")
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

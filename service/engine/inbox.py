"""The engine's inbox: what the reader thread received and the engine has not yet seen."""

from __future__ import annotations

import threading
from collections import deque

from service.engine.protocol import ToEngine


class InboxClosed(Exception):
    """The client is gone: nobody wants anything any more."""


class Inbox:
    """Messages from the client, put by one thread and taken by the engine's."""

    def __init__(self) -> None:
        self.bell = threading.Event()  # set whenever something comes
        self._messages: deque[ToEngine] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, message: ToEngine) -> None:
        """Adds a message; the engine sees it before its next step."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify()
        self.bell.set()

    def close(self) -> None:
        """Makes the next `take` raise."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self.bell.set()

    def take(self, *, wait: bool) -> list[ToEngine]:
        """All messages so far, at least one if told to wait. Raises `InboxClosed`."""
        with self._changed:
            while wait and not self._messages and not self._closed:
                self._changed.wait()
            if self._closed:
                raise InboxClosed
            taken = list(self._messages)
            self._messages.clear()
            return taken

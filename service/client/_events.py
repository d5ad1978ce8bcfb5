"""Server-sent events from the lines of an answer. No I/O: both clients feed it."""

from __future__ import annotations

from typing import Final

from service.client._answers import Done, Event, GeneratedImage, Queued, Step, decode
from service.client._errors import error_of_problem

__all__ = ["EventReader"]

KINDS: Final[dict[str, type[Event]]] = {"queued": Queued, "step": Step, "image": GeneratedImage, "done": Done}


class EventReader:
    """Feed it line by line; `complete` says whether the stream came to its proper end."""

    def __init__(self) -> None:
        self.complete = False
        self._name = ""
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """The event that this line ends, if it ends one. Raises `ApiError` for the service's `error` event.

        Comments and events that this client does not know yet are passed over.
        """
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                self._name = value
            elif field == "data":
                self._data.append(value)
            return None
        name, data = self._name, "\n".join(self._data)
        self._name, self._data = "", []
        if name == "error":
            self.complete = True
            raise error_of_problem(data.encode())
        kind = KINDS.get(name)
        if kind is None:
            return None
        self.complete = kind is Done
        return decode(data, kind)

"""Counts outstanding work and says when a new request would be done, under the scheduler's fair sharing.

All in seconds of the device, so that models of different cost can be added up. No clocks, no HTTP.
"""

from __future__ import annotations

from collections import defaultdict


class Backlog:
    """Outstanding work of every client's requests."""

    def __init__(self) -> None:
        self._work: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def set(self, client: str, request: int, seconds: float) -> None:
        """What a request still needs; 0 forgets it."""
        if seconds > 0:
            self._work[client][request] = seconds
        else:
            self._work[client].pop(request, None)
            if not self._work[client]:
                del self._work[client]

    def total(self) -> float:
        """Seconds until all of it is done, if nothing more comes."""
        return sum(sum(requests.values()) for requests in self._work.values())

    def finish(self, client: str, seconds: float) -> float:
        """Seconds until a new request of `client` that needs `seconds` is done.

        Turns go round clients, and within a client round its requests: until this one is done no other
        request of the client gets more than it does, and no other client more than this client does.
        """
        own = seconds + sum(min(other, seconds) for other in self._work.get(client, {}).values())
        others = (sum(requests.values()) for name, requests in self._work.items() if name != client)
        return own + sum(min(other, own) for other in others)

"""Where a service is between its start and its end."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Lifecycle"]


@dataclass(slots=True)
class Lifecycle:
    """Only the server changes it; probes and answers read it (`app.state.lifecycle`)."""

    draining: bool = False  # SIGTERM came: /readyz is 503
    closing: bool = False  # the listener is closed: every answer ends its connection

"""Listening sockets. Imports nothing that takes time, for a start listens before it imports the rest."""

from __future__ import annotations

import socket
from typing import Final

__all__ = ["BACKLOG", "CannotListen", "listen"]

BACKLOG: Final = 2048


class CannotListen(Exception):
    """The address or port cannot be listened on, with the reason in one sentence."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `CannotListen`."""
    try:
        if ":" in host:
            dual = host == "::" and socket.has_dualstack_ipv6()
            return socket.create_server((host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=dual)
        return socket.create_server((host, port), backlog=BACKLOG)
    except (OSError, TypeError, UnicodeError) as error:  # the latter for names that no host can have
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]  # Python adds the address
        raise CannotListen(f"cannot listen on {host} port {port}: {reason}") from None

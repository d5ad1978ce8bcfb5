"""How `onestep` ends: every exit code, in one table."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """Exit codes of `onestep`. The README's table is made of these sentences."""

    def __new__(cls, code: int, meaning: str) -> ExitCode:  # noqa: D102
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    meaning: str

    OK = 0, "Done; for `serve`: everything accepted was answered after SIGTERM or SIGINT."
    FAULT = 1, "A fault of ours; the log has the traceback."
    USAGE = 2, "A flag, a variable or an argument is unknown or wrong."
    CANNOT_LISTEN = 3, "The address or port cannot be listened on."
    MODEL = 4, "A model can never be served: its files are missing, wrong or damaged."
    ENGINE = 5, "The engine died more often than `engine_restarts` allows."
    DRAIN_TIMEOUT = 6, "`drain_timeout` passed before everything accepted was answered."
    FORCED = 7, "Interrupted; for `serve`: a second SIGTERM or SIGINT ended it at once."
    REMOTE = 8, "`generate --server` and `bench`: the server did not answer, or could not do it."

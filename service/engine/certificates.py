"""What certification found, kept on disk under the numerics fingerprint."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from service.cache import write_whole
from service.engine.lanes import Way
from service.engine.request import SizeTime

log = logging.getLogger(__name__)

LEAST = 1e-6  # seconds of a step; what says less is no measurement


class Trial(msgspec.Struct, frozen=True):
    """Whether a way of running gives the anchor's bits to every row, wherever it stands."""

    way: Way
    exact: bool


class Certificate(msgspec.Struct, frozen=True):
    """The outcome for one model on one device."""

    fingerprint: str  # 32 hex digits; equal ones mean equal bits
    trials: tuple[Trial, ...]
    times: tuple[SizeTime, ...]  # of the measured batch sizes, ascending; the least ever seen


def load(folder: str, fingerprint: str, threads: int) -> Certificate | None:
    """What an earlier start with as many threads found; None when there is nothing of use."""
    path = _path(folder, fingerprint, threads)
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Certificate)
        if not all(time.seconds >= LEAST for time in found.times):
            raise ValueError("a step takes no time")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        log.warning("cannot read %s: %s", path, error)
        return None


def save(folder: str, certificate: Certificate, threads: int) -> None:
    """Written whole or not at all; a cache folder that cannot be written only costs the next start time."""
    path = _path(folder, certificate.fingerprint, threads)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(certificate)))
    except OSError as error:
        log.warning("cannot keep the certificate in %s: %s", path.parent, error)


def _path(folder: str, fingerprint: str, threads: int) -> Path:
    return Path(folder) / "certificates" / f"{fingerprint}-{threads}.json"

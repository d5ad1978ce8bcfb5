"""Strong entity tags of image URLs, known before any work is done, and `If-None-Match` (RFC 9110, 13.1.2)."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

from service.api.encoding import encoder_versions
from service.api.planning import Plan

__all__ = ["image_etag", "matches"]

_TAG: Final = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def image_etag(plan: Plan, fingerprint: str) -> str:
    """The tag of a plan's one image, quotes included: a hash of everything that decides its bytes.

    The model's name and the timesteps are written into a PNG; the fingerprint is that of the engine's numerics.
    """
    sample = plan.samples[0]
    parts = (
        plan.model.name,
        plan.model.revision,
        fingerprint,
        encoder_versions(),
        sample.class_label,
        sample.seed,
        sample.sigmas,
        plan.timesteps,
        plan.output_format,
        plan.quality,
    )
    return f'"{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]}"'


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has this image already. Weak comparison; `*` is any; what is malformed is no match."""
    if if_none_match is None:
        return False
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)

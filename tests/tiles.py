"""Tests that need the processor's tile instructions."""

from __future__ import annotations

import pytest

from service.engine import amx

with_tiles = pytest.mark.skipif(not amx.available(), reason="this processor has no tile instructions")

"""Tests that need a processor's own instructions."""

from __future__ import annotations

import pytest

from service.engine import amx, vectors
from service.engine import forward as forwards
from service.engine.steps import TILES, VECTORS, Instructions

with_tiles = pytest.mark.skipif(not amx.available(), reason="this processor has no tile instructions")
with_vectors = pytest.mark.skipif(not vectors.has(vectors.AVX2), reason="this processor has no AVX2")

INSTRUCTIONS = [
    pytest.param(TILES, marks=with_tiles, id="amx"),
    pytest.param(VECTORS, marks=with_vectors, id="vectors"),
]

PLAN = "projected, packed, kernels"
"""How networks run by operators and norms' kernels."""


def plan_here() -> str:
    """How networks run by what this processor has, but for whether it is one call."""
    return PLAN + (", amx" if amx.available() else ", vectors" if vectors.has(vectors.AVX2) else "")


def use(monkeypatch: pytest.MonkeyPatch, instructions: Instructions | None) -> None:
    """Has networks run by these instructions alone, or by operators."""
    for each, name in ((TILES, "amx_convolution"), (VECTORS, "vector_convolution")):
        if each is not instructions:
            monkeypatch.setattr(forwards, name, lambda dtype: None)

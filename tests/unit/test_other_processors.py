"""Kernels for instructions that this processor may not have: the same tests, by emulated tiles and by AVX2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.engine import amx, vectors

pytestmark = pytest.mark.slow

FILES = [f"tests/unit/test_{name}.py" for name in ("kernel_conv", "kernel_attention", "program")]
AVX2 = "+avx,+avx2,+fma,+bmi,+bmi2,+popcnt,+sse4.1,+sse4.2,+ssse3,+sse3,+f16c,+cx16,+lzcnt,+movbe"


def run(cache: Path, *arguments: str, **environment: str) -> str:
    """What pytest says of tests in a process of its own, which must not fail; kernels are kept in `cache`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    ended = subprocess.run(
        command, env=os.environ | environment | {"NUMBA_CACHE_DIR": str(cache)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-1000:]
    return ended.stdout


@pytest.mark.skipif(amx.available(), reason="this processor has tiles, and tests them itself")
def test_tiles_that_are_emulated(tmp_path: Path) -> None:
    """All but what needs tiles for each thread, or has them taken away."""
    chosen = "(amx or not vectors) and not threads and not no_tiles"
    said = run(tmp_path, "-p", "tests.emulated_tiles", "-k", chosen, "tests/unit/test_amx_conv.py", *FILES)
    assert "skipped" not in said
    assert " passed" in said


@pytest.mark.skipif(not vectors.has(vectors.AVX512), reason="this processor's vectors are no wider")
def test_vectors_that_are_narrower(tmp_path: Path) -> None:
    narrow = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2}
    said = run(tmp_path, "-k", "vectors", "tests/unit/test_vector_conv.py", *FILES, **narrow)
    assert "skipped" not in said
    assert " passed" in said

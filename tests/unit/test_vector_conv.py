"""Convolutions by vector instructions: how exact Winograd's tiles are, and which convolutions have which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.engine import vectors
from service.engine.forward import ProjectedForward
from service.engine.packing import PackedConv2d
from service.engine.vector_conv import VectorConv2d, has_vectors, vector_convolution
from service.engine.winograd import matrices, turned_weights
from service.models.folder import load_info
from service.models.loader import load_unet
from tests.instructions import PLAN, with_vectors
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("inference")

NHWC = torch.channels_last
SIZES = [2, 4]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=NHWC)


def convolution(channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out_channels, 3, padding=1).requires_grad_(False)
    conv.weight.copy_(noise(*conv.weight.shape, seed=1) * 0.1)
    return conv


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt())


@pytest.mark.parametrize("size", SIZES)
def test_what_is_turned_and_back_is_a_convolution(size: int) -> None:
    """In float64 and in two dimensions, as the matrices say."""
    inputs, sums, _ = matrices(size)
    image, weight = np.random.default_rng(0).standard_normal((size + 2, size + 2)), noise(1, 1, 3, 3)
    turned = turned_weights(weight.numpy(), size).reshape(size + 2, size + 2)
    found = sums @ ((inputs @ image @ inputs.T) * turned) @ sums.T
    expected = nn.functional.conv2d(torch.from_numpy(image)[None, None], weight.double())[0, 0]
    assert np.allclose(found, expected.numpy(), atol=1e-12)


@with_vectors
@pytest.mark.parametrize(("channels", "side"), [(32, 32), (96, 16), (384, 8)])
def test_small_tiles_are_more_exact_than_products_as_they_are(channels: int, side: int) -> None:
    """Those of large ones are off by three times as much at most."""
    conv, x = convolution(channels, 64), noise(3, channels, side, side)
    exact = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    usual = off(PackedConv2d(conv, tuple(x.shape[1:]))(x), exact)
    assert off(VectorConv2d(conv, 1)(x), exact) <= usual
    assert off(VectorConv2d(conv, 2)(x), exact) <= usual
    assert off(VectorConv2d(conv, 4)(x), exact) <= 3 * usual


@with_vectors
@pytest.mark.parametrize("size", SIZES)
def test_what_is_not_finite_stays_in_its_tiles(size: int) -> None:
    x = noise(2, 32, 16, 16)
    x[1, 3, 8, 8] = torch.nan
    found = VectorConv2d(convolution(32, 32), size)(x).isnan()
    assert found[1, :, 7:10, 7:10].all()
    tile = slice(8 - size, 8 + size)
    found[1, :, tile, tile] = False
    assert not found.any()


@with_vectors
@pytest.mark.parametrize(
    ("channels", "out_channels", "side", "size"),
    [
        (32, 32, 64, 4),
        (32, 32, 16, 4),
        (32, 32, 8, 2),  # few tiles
        (768, 768, 16, 2),  # few, and many weights
        (768, 768, 32, 4),
        (64, 3, 64, 1),  # few outputs
    ],
)
def test_tiles_are_as_large_as_is_worth_it(channels: int, out_channels: int, side: int, size: int) -> None:
    conv = nn.Conv2d(channels, out_channels, 3, padding=1)
    for dtype in (torch.float32, torch.bfloat16):
        make = vector_convolution(dtype)
        assert make is not None
        made = make(conv, (channels, side, side))
        assert isinstance(made, VectorConv2d)
        assert made._size == size


@with_vectors
def test_other_forms_are_left_to_the_library() -> None:
    make = vector_convolution(torch.float32)
    assert make is not None
    assert isinstance(make(nn.Conv2d(32, 32, 3), (32, 8, 8)), PackedConv2d)


@pytest.mark.parametrize("refusal", ["numba", "processor"])
def test_where_there_are_no_such_instructions_the_library_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    info = load_info(tiny_model(tmp_path / "m"), "tiny")
    monkeypatch.setitem(sys.modules, "service.engine.amx", None)
    if refusal == "numba":
        monkeypatch.setitem(sys.modules, "service.engine.vectors", None)
    else:
        monkeypatch.setattr(vectors, "AVX2", ("avx1024",))
    has_vectors.cache_clear()
    form = ProjectedForward(load_unet(info), info, torch.device("cpu"), torch.float32)
    has_vectors.cache_clear()
    assert form.plan == PLAN


@pytest.mark.parametrize(
    ("asked", "found"), [("+avx,+avx2,-avx512f,+fma", True), ("+avx,-avx2,+fma", False), ("", False)]
)
def test_instructions_are_those_that_are_compiled_for(monkeypatch: pytest.MonkeyPatch, asked: str, found: bool) -> None:
    """As NUMBA_CPU_FEATURES has them, or NUMBA_ENABLE_AVX=0 leaves them."""
    monkeypatch.setattr(vectors.config, "CPU_FEATURES", None)
    monkeypatch.setattr(vectors, "get_host_cpu_features", lambda: asked)
    assert vectors.has(vectors.AVX2) == found
    monkeypatch.setattr(vectors, "get_host_cpu_features", lambda: "")
    monkeypatch.setattr(vectors.config, "CPU_FEATURES", asked or None)
    assert vectors.has(vectors.AVX2) == found


@with_vectors
def test_memory_beyond_images_is_left_alone() -> None:
    """In a process of its own, which would end by a signal."""
    ended = subprocess.run([sys.executable, "-m", "tests.guarded", "40"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "40 held\n"), ended.stderr[-2000:]

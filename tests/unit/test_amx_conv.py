"""Convolutions by tile instructions: nearer to float64 than float32's own, a row by itself, and only where they fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.engine import amx, amx_conv
from service.engine.amx_conv import AmxConv2d, amx_convolution
from service.engine.forward import ProjectedForward
from service.engine.norm import KernelGroupNorm, norm_kernel
from service.engine.packing import FusedConv2d, PackedConv2d
from service.engine.steps import TILES
from service.models.folder import load_info
from service.models.loader import load_unet
from tests.instructions import PLAN, use, with_tiles
from tests.tiny import tiny_model
from tests.unit.test_kernel_conv import PART, SHAPES

pytestmark = pytest.mark.usefixtures("inference")

NHWC = torch.channels_last
HOLDERS = {1: torch.bfloat16, 2: torch.float16, 3: torch.float32}  # of weights in so many pieces


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=NHWC)


def convolution(channels: int, out_channels: int, side: int, holder: torch.dtype = torch.float32) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out_channels, side, padding=side // 2).requires_grad_(False)
    conv.weight.copy_(noise(*conv.weight.shape, seed=1) * 0.1)
    conv.weight.copy_(conv.weight.to(holder))
    conv.bias.normal_(generator=torch.Generator().manual_seed(2))
    return conv


def by_tiles(conv: nn.Conv2d, dtype: torch.dtype = torch.float32) -> AmxConv2d:
    make = amx_convolution(dtype)
    assert make is not None
    made = make(conv, ())
    assert isinstance(made, AmxConv2d)
    return made


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt())


@with_tiles
@pytest.mark.parametrize("pieces", HOLDERS)
@pytest.mark.parametrize(("channels", "out_channels", "height", "width", "side"), SHAPES)
def test_sums_are_as_exact_as_float32_can_be(
    channels: int, out_channels: int, height: int, width: int, side: int, pieces: int
) -> None:
    conv = convolution(channels, out_channels, side, HOLDERS[pieces])
    x, other = noise(5, channels, height, width), noise(5, out_channels, height, width, seed=3)
    terms = [x.double(), conv.weight.double(), conv.bias.double()]
    exact = nn.functional.conv2d(*terms, padding=side // 2)
    size = nn.functional.conv2d(*(term.abs() for term in terms), padding=side // 2)
    ours = by_tiles(conv)
    assert ours._pieces == pieces
    assert ours(x).is_contiguous(memory_format=NHWC)
    assert ((ours(x) - exact).abs() <= 2**-22 * size).all()
    assert ((ours.plus(x, other) - exact - other).abs() <= 2**-22 * (size + other.abs())).all()


@with_tiles
@pytest.mark.parametrize("pieces", HOLDERS)
def test_long_sums_are_more_exact_than_by_vector_instructions(pieces: int) -> None:
    conv = convolution(96, 64, 3, HOLDERS[pieces])
    x = noise(3, 96, 16, 16)
    exact = nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    assert off(by_tiles(conv)(x), exact) <= off(PackedConv2d(conv, (96, 16, 16))(x), exact)


@with_tiles
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("channels", "out_channels", "height", "width", "side"), SHAPES)
def test_in_bfloat16_values_and_weights_are_rounded_and_nothing_else(
    channels: int, out_channels: int, height: int, width: int, side: int, normalised: bool
) -> None:
    conv = convolution(channels, out_channels, side)
    x, norm = noise(5, channels, height, width), nn.GroupNorm(channels, channels, affine=True, eps=0)
    ours = by_tiles(conv, torch.bfloat16)
    kernel = norm_kernel(torch.float32)
    assert kernel is not None
    if normalised:  # by factors that change no bit
        x = torch.cat([x.sign(), -x.sign()], 2).contiguous(memory_format=NHWC)
        norm.weight.copy_(noise(1, channels, 1, 1, seed=4).flatten().bfloat16())
    rounded = norm.weight.view(1, -1, 1, 1) * x if normalised else x.bfloat16()
    terms = [rounded.double(), conv.weight.bfloat16().double(), conv.bias.double()]
    exact = nn.functional.conv2d(*terms, padding=side // 2)
    size = nn.functional.conv2d(*(term.abs() for term in terms), padding=side // 2)
    found = ours.after(KernelGroupNorm(norm, kernel), x, silu=False) if normalised else ours(x)
    assert ours._pieces == 1
    assert ((found - exact).abs() <= 2**-22 * size).all()
    assert torch.equal(ours(x[1:2].clone())[0], ours(x)[1])


@with_tiles
def test_in_bfloat16_silu_on_the_way_is_rounded_once() -> None:
    kernel = norm_kernel(torch.float32)
    assert kernel is not None
    norm = nn.GroupNorm(8, 32).requires_grad_(False)
    conv = nn.Conv2d(32, 32, 1, bias=False).requires_grad_(False)
    conv.weight.copy_(torch.eye(32)[:, :, None, None])
    x = 3 * noise(2, 32, 16, 16)
    norm_ours = KernelGroupNorm(norm, kernel)
    found = by_tiles(conv, torch.bfloat16).after(norm_ours, x, silu=True)
    exact = by_tiles(conv).after(norm_ours, x, silu=True)
    assert torch.equal(found, exact.bfloat16().float())


@with_tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_in_its_neighbourhood(dtype: torch.dtype) -> None:
    x = noise(2, 32, 8, 8)
    x[1, 3, 4, 4] = torch.nan
    found = by_tiles(convolution(32, 32, 3), dtype)(x).isnan()
    assert found[1, :, 3:6, 3:6].all()
    assert int(found.sum()) == 32 * 9


@with_tiles
@pytest.mark.parametrize("pieces", HOLDERS)
@pytest.mark.parametrize(("channels", "out_channels", "height", "width", "side"), PART)
def test_channels_that_a_tile_lacks_change_nothing(
    channels: int, out_channels: int, height: int, width: int, side: int, pieces: int
) -> None:
    conv = convolution(channels, out_channels, side, HOLDERS[pieces])
    wide = convolution(64, 32, side, HOLDERS[pieces])
    wide.weight.zero_()
    wide.bias.zero_()
    wide.weight[:out_channels, :channels], wide.bias[:out_channels] = conv.weight, conv.bias
    x, other = noise(3, channels, height, width), noise(3, out_channels, height, width, seed=3)
    expected = by_tiles(wide)(nn.functional.pad(x, (0, 0, 0, 0, 0, 64 - channels)))[:, :out_channels]
    ours = by_tiles(conv)
    assert torch.equal(ours(x), expected)
    assert torch.allclose(ours.plus(x, other), expected + other, atol=1e-6)
    assert torch.equal(ours(x[1:2].clone())[0], expected[1])


@pytest.mark.parametrize(("pieces", "digits"), [(1, -0x10000), (2, -0x100), (3, -1)])
def test_pieces_are_bfloat16_and_add_up(pieces: int, digits: int) -> None:
    values = noise(1, 64, 8, 8) * torch.logspace(-20, 20, 64).view(64, 1, 1)
    values = (values.view(torch.int32) & digits).view(torch.float32)
    found = amx_conv._split(values)
    assert len(found) == pieces
    assert all(torch.equal(piece.bfloat16().float(), piece) for piece in found)
    assert torch.equal(torch.stack(found).double().sum(0), values.double())
    assert len(amx_conv._split(torch.zeros(3))) == 1


def refuse(*arguments: Any) -> int:
    return -1


@pytest.mark.parametrize("refusal", ["numba", "linux", "another system"])
def test_where_there_are_no_tiles_something_else_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    info = load_info(tiny_model(tmp_path / "m"), "tiny")
    amx.available.cache_clear()
    if refusal == "numba":
        monkeypatch.setitem(sys.modules, "service.engine.amx", None)
    elif refusal == "linux":
        monkeypatch.setattr(amx, "_request", refuse)
    else:
        monkeypatch.setattr(sys, "platform", "darwin")
    use(monkeypatch, TILES)
    form = ProjectedForward(load_unet(info), info, torch.device("cpu"), torch.float32)
    amx.available.cache_clear()
    assert form.plan == PLAN
    convolutions = [module for module in form._body.modules() if isinstance(module, FusedConv2d)]
    assert convolutions
    assert all(isinstance(module, PackedConv2d) for module in convolutions)

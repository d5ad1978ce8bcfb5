"""Convolutions by a processor's own instructions: what holds for all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from service.engine import amx_conv
from service.engine.amx_conv import AmxConv2d
from service.engine.kernel_conv import KernelConv2d
from service.engine.norm import KernelGroupNorm, RowGroupNorm, norm_kernel
from service.engine.vector_conv import VectorConv2d
from tests.instructions import with_tiles, with_vectors

pytestmark = pytest.mark.usefixtures("inference")

NHWC = torch.channels_last
SHAPES = [  # channels, output channels, height, width, side
    (32, 32, 16, 16, 3),
    (96, 64, 5, 32, 3),
    (64, 32, 8, 8, 3),
    (32, 96, 3, 7, 3),
    (32, 32, 1, 1, 3),
    (32, 32, 40, 24, 3),
    (64, 192, 8, 8, 1),
    (32, 64, 3, 5, 1),
]
PART = [(3, 32, 16, 16, 3), (64, 3, 8, 32, 3), (40, 20, 5, 3, 1), (48, 32, 2, 2, 1)]  # of the channels taken at once

Make = Callable[[nn.Conv2d], KernelConv2d]


def by_vectors(size: int) -> Make:
    return lambda conv: VectorConv2d(conv, size if conv.kernel_size == (3, 3) else 1)


@pytest.fixture(
    params=[
        pytest.param(lambda conv: AmxConv2d(conv, 3), marks=with_tiles, id="amx"),
        *(pytest.param(by_vectors(size), marks=with_vectors, id=f"vectors, tiles of {size}") for size in (1, 2, 4)),
    ]
)
def make(request: pytest.FixtureRequest) -> Make:
    """One of a convolution."""
    chosen: Make = request.param
    return chosen


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=NHWC)


def convolution(channels: int, out_channels: int, side: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out_channels, side, padding=side // 2).requires_grad_(False)
    conv.weight.copy_((noise(*conv.weight.shape, seed=1) * 0.1).bfloat16())
    conv.bias.normal_(generator=torch.Generator().manual_seed(2))
    return conv


@pytest.mark.parametrize(("channels", "out_channels", "height", "width", "side"), [*SHAPES, *PART])
def test_it_is_a_convolution(make: Make, channels: int, out_channels: int, height: int, width: int, side: int) -> None:
    conv = convolution(channels, out_channels, side)
    x, other = noise(5, channels, height, width), noise(5, out_channels, height, width, seed=3)
    exact, ours = copy.deepcopy(conv).double()(x.double()), make(conv)
    assert ours(x).is_contiguous(memory_format=NHWC) == (out_channels % 32 == 0)
    assert torch.allclose(ours(x).double(), exact, atol=2e-5)
    assert torch.allclose(ours.plus(x, other).double(), exact + other, atol=2e-5)


@pytest.mark.parametrize(("channels", "out_channels", "height", "width", "side"), PART)
def test_channels_that_are_missing_change_nothing(
    make: Make, channels: int, out_channels: int, height: int, width: int, side: int
) -> None:
    conv = convolution(channels, out_channels, side)
    wide = convolution(64, 32, side)
    wide.weight.zero_()
    wide.bias.zero_()
    wide.weight[:out_channels, :channels], wide.bias[:out_channels] = conv.weight, conv.bias
    x, other = noise(3, channels, height, width), noise(3, out_channels, height, width, seed=3)
    expected = make(wide)(nn.functional.pad(x, (0, 0, 0, 0, 0, 64 - channels)))[:, :out_channels]
    ours = make(conv)
    assert torch.equal(ours(x), expected)
    assert torch.allclose(ours.plus(x, other), expected + other, atol=1e-6)
    assert torch.equal(ours(x[1:2].clone())[0], expected[1])


@pytest.mark.parametrize(("channels", "out_channels", "height", "width", "side"), SHAPES)
def test_bits_of_a_row_do_not_depend_on_its_company(
    monkeypatch: pytest.MonkeyPatch, make: Make, channels: int, out_channels: int, height: int, width: int, side: int
) -> None:
    ours = make(convolution(channels, out_channels, side))
    x, other = noise(5, channels, height, width), noise(5, out_channels, height, width, seed=3)
    together, added = ours(x), ours.plus(x, other)
    monkeypatch.setattr(amx_conv, "CACHE", 0)
    for row in range(len(x)):
        alone, its_other = x[row : row + 1].clone(), other[row : row + 1].clone()
        assert torch.equal(ours(alone)[0], together[row])
        assert torch.equal(ours.plus(alone, its_other)[0], added[row])
    assert torch.equal(ours(x), together)


@pytest.mark.parametrize(("channels", "out_channels", "height", "width", "side"), SHAPES)
@pytest.mark.parametrize("silu", [False, True])
def test_a_norm_on_the_way_is_as_good_as_one_before(
    make: Make, channels: int, out_channels: int, height: int, width: int, side: int, silu: bool
) -> None:
    kernel = norm_kernel(torch.float32)
    assert kernel is not None
    norm = nn.GroupNorm(8, channels).requires_grad_(False)
    norm.weight.normal_(generator=torch.Generator().manual_seed(4))
    own = RowGroupNorm(norm)
    conv = convolution(channels, out_channels, side)
    ours, exact = make(conv), copy.deepcopy(conv).double()
    x, other = 20 * noise(3, channels, height, width) + 5, noise(3, out_channels, height, width, seed=3)
    scale, shift = noise(3, 2 * channels + 3, 1, 1, seed=5)[:, 2 : 2 + 2 * channels, 0, 0].chunk(2, dim=1)
    for modulation, added in ((None, None), ((scale, shift), None), ((scale, shift), other), (None, other)):
        found = ours.after(KernelGroupNorm(norm, kernel), x, silu=silu, modulation=modulation, other=added)
        hidden = own.normalised(x, silu=silu, modulation=modulation)
        expected = exact(hidden.double()) + (0 if added is None else added)
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=2e-5)
        assert torch.equal(
            ours.after(own, x, silu=silu, modulation=modulation, other=added), apart(ours, hidden, added)
        )
    for row in range(len(x)):
        alone = ours.after(KernelGroupNorm(norm, kernel), x[row : row + 1].clone(), silu=silu)
        assert torch.equal(alone[0], ours.after(KernelGroupNorm(norm, kernel), x, silu=silu)[row])


def apart(conv: KernelConv2d, hidden: Tensor, other: Tensor | None) -> Tensor:
    return conv(hidden) if other is None else conv.plus(hidden, other)


def test_silu_on_the_way_is_exact_from_end_to_end(make: Make) -> None:
    """Of values far below zero nothing is left, of those far above all, and in between what float64 says."""
    kernel = norm_kernel(torch.float32)
    assert kernel is not None
    norm = nn.GroupNorm(1, 32).requires_grad_(False)
    conv = nn.Conv2d(32, 64, 1, bias=False).requires_grad_(False)
    conv.weight.copy_(torch.cat([torch.eye(32), torch.eye(32)])[:, :, None, None])
    x = torch.linspace(-1, 1, 32 * 256).view(1, 32, 16, 16)
    norm.weight.fill_(60)
    ours, norm_ours = make(conv), KernelGroupNorm(norm, kernel)
    found = ours.after(norm_ours, x, silu=True)[:, :32]
    values = ours.after(norm_ours, x, silu=False)[:, :32].double()
    assert float(values.min()) < -90
    assert float(values.max()) > 90
    assert torch.allclose(found.double(), values * values.sigmoid(), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize(("channels", "out_channels", "height", "width", "side"), [*SHAPES, *PART])
def test_of_every_second_pixel_it_is_what_it_is_of_all(
    make: Make, channels: int, out_channels: int, height: int, width: int, side: int
) -> None:
    conv = convolution(channels, out_channels, side)
    x, all_of_it = noise(3, channels, height, width), make(conv)(noise(3, channels, height, width))
    conv.stride = (2, 2)
    ours = make(conv)
    assert torch.allclose(ours(x), conv(x), atol=1e-4)
    assert torch.equal(ours(x), all_of_it[:, :, ::2, ::2])
    assert ours(x).is_contiguous(memory_format=NHWC)
    assert torch.equal(ours.plus(x, ours(x)), 2 * ours(x))


def test_without_a_bias_and_from_another_layout(make: Make) -> None:
    conv = convolution(32, 32, 3)
    x = noise(2, 32, 8, 16)
    biased = make(conv)(x)
    bias, conv.bias = conv.bias, None
    assert bias is not None
    ours = make(conv)
    assert torch.allclose(ours(x) + bias[:, None, None], biased, atol=1e-5)
    assert torch.equal(ours(x.contiguous()), ours(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(32, 32, 3, padding=1, stride=3),
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(32, 32, 3, padding=1, dtype=torch.bfloat16),
        nn.Linear(32, 32),
    ],
    ids=str,
)
def test_other_forms_do_not_fit(conv: nn.Module) -> None:
    assert not KernelConv2d.fits(conv)

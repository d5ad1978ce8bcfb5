"""Attention by a processor's own instructions: as near to float64 as float32's own, and a row by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from service.engine.blocks import mix_pixels
from service.engine.program_layers import mix_pixels_by
from service.engine.steps import Instructions
from tests.instructions import INSTRUCTIONS

pytestmark = [pytest.mark.usefixtures("inference"), pytest.mark.parametrize("instructions", INSTRUCTIONS)]

SHAPES = [
    (8, 8, 3, 64),
    (4, 8, 2, 32),
    (16, 16, 1, 96),
    (32, 32, 2, 64),
    (8, 8, 1, 512),
]  # height, width, heads, channels of each


def images(rows: int, height: int, width: int, channels: int, scale: float = 1) -> Tensor:
    """Queries, keys and values of so many channels each."""
    generator = torch.Generator().manual_seed(0)
    qkv = scale * torch.randn(rows, 3 * channels, height, width, generator=generator)
    return qkv.contiguous(memory_format=torch.channels_last)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt())


@pytest.mark.parametrize("scale", [0.1, 1, 5])
@pytest.mark.parametrize(("height", "width", "heads", "each"), SHAPES)
def test_it_is_as_exact_as_pytorch_is(
    instructions: Instructions,
    height: int,
    width: int,
    heads: int,
    each: int,
    scale: float,
) -> None:
    qkv = images(2, height, width, heads * each, scale)
    exact = mix_pixels(qkv.double(), heads)
    found = mix_pixels_by(instructions, qkv, heads)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert off(found, exact) <= 1.1 * off(mix_pixels(qkv, heads), exact)


def test_scores_far_apart_choose_one_value(instructions: Instructions) -> None:
    """A query that is far nearer to one key than to others gets that key's value, and nothing of them."""
    keys = torch.eye(64).view(1, 64, 8, 8)
    values = images(1, 8, 8, 64)[:, :64]
    qkv = torch.cat([1e6 * keys, keys, values], 1).contiguous(memory_format=torch.channels_last)
    found = mix_pixels_by(instructions, qkv, 1)
    assert torch.equal(found, values)


def test_equal_scores_give_the_mean(instructions: Instructions) -> None:
    qkv = images(1, 8, 8, 32)
    qkv[:, :32] = 0
    expected = qkv[:, 64:].double().mean((2, 3), keepdim=True).expand(-1, -1, 8, 8)
    assert torch.allclose(mix_pixels_by(instructions, qkv, 1).double(), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "heads", "each"), SHAPES)
def test_bits_of_a_row_do_not_depend_on_its_company(
    instructions: Instructions,
    height: int,
    width: int,
    heads: int,
    each: int,
) -> None:
    qkv = images(3, height, width, heads * each)
    together = mix_pixels_by(instructions, qkv, heads)
    for row in range(3):
        assert torch.equal(mix_pixels_by(instructions, qkv[row : row + 1].clone(), heads)[0], together[row])


def test_what_is_not_finite_stays_in_its_row_and_head(instructions: Instructions) -> None:
    qkv = images(2, 8, 8, 64)
    qkv[1, 64 + 40, 3, 3] = torch.nan  # a key of the second head
    found = mix_pixels_by(instructions, qkv, 2)
    assert found[1, 32:].isnan().all()
    assert not found[1, :32].isnan().any()
    assert not found[0].isnan().any()


@pytest.mark.parametrize(("height", "width", "heads", "each"), [(3, 5, 1, 32), (8, 8, 2, 24)])
def test_what_32_does_not_divide_is_left_to_pytorch(
    instructions: Instructions,
    height: int,
    width: int,
    heads: int,
    each: int,
) -> None:
    qkv = images(2, height, width, heads * each)
    assert torch.equal(mix_pixels_by(instructions, qkv, heads), mix_pixels(qkv, heads))

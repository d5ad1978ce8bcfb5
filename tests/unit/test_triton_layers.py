"""The GPU's kernels, one operation after the other by Triton's interpreter: right results on a machine without a GPU.

Bits and speed are a GPU's business: `benchmarks/gpu_check.py`. The interpreter has no bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime.errors import OutOfResources

from service.engine.blocks import QuickAttention, QuickResnet, quicken
from service.engine.embedding import Projections
from service.engine.forward import REFUSALS, ProjectedForward
from service.engine.packing import input_shapes
from service.engine.triton_calls import convolve, group_norm, tile_for
from service.engine.triton_layers import COMPILER_REFUSALS, TileConv2d, TileGroupNorm, tile_body, tile_norms
from service.engine.unet import UNetBody
from service.models.folder import load_info
from service.models.loader import load_unet
from tests.tiny import tiny_model

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2}
IMAGENET_LIKE: dict[str, Any] = {
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "attention_head_dim": 16,
    "norm_num_groups": 8,
    "attn_norm_num_groups": 8,
    "sample_size": 8,
}


def image(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return value.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else value


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("shape", "out_channels", "side", "stride", "split"),
    [
        ((2, 64, 8, 8), 64, 3, 1, 1),
        ((3, 64, 8, 8), 48, 3, 2, 3),  # a sum in three parts; channels that fill no tile
        ((2, 3, 8, 8), 24, 3, 1, 1),  # a picture's channels in
        ((2, 64, 4, 4), 3, 3, 1, 1),  # and out
        ((1, 40, 8, 6), 24, 1, 1, 1),
    ],
)
def test_convolutions_are_those_of_pytorch(
    dtype: torch.dtype, shape: tuple[int, ...], out_channels: int, side: int, stride: int, split: int
) -> None:
    x, weight = image(*shape, dtype=dtype), image(out_channels, shape[1], side, side, dtype=dtype, seed=1) / 24
    bias = image(out_channels, dtype=dtype, seed=2)
    expected = functional.conv2d(x.float(), weight.float(), bias.float(), stride, side // 2)
    other = image(*expected.shape, dtype=dtype, seed=3)
    tile = tile_for(expected[0, 0].numel(), out_channels, shape[1], side**2)._replace(split=split)
    found = convolve(x, weight, bias, stride, side // 2, other, tile)
    assert torch.allclose(found.float(), expected + other, atol=TOLERANCE[dtype], rtol=0)
    plain = convolve(x, weight, None, stride, side // 2, None, tile).float()
    assert torch.allclose(plain, expected - bias.float().view(-1, 1, 1), atol=TOLERANCE[dtype], rtol=0)


def test_the_cut_of_a_layer_splits_its_sum_into_equal_parts() -> None:
    for pixels in (16, 64, 256, 1024, 4096):
        for channels in (3, 16, 40, 192, 576, 1344):
            for out_channels in (3, 24, 192, 576):
                for taps in (1, 9):
                    tile = tile_for(pixels, out_channels, channels, taps)
                    rounds = taps * -(-channels // tile.depth)
                    assert rounds % tile.split == 0, (pixels, channels, out_channels, taps, tile)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_norms_are_those_of_pytorch(dtype: torch.dtype) -> None:
    x = image(3, 96, 13, 11, dtype=dtype) * 2 + 1
    weight, bias = image(96, seed=1), image(96, seed=2)
    expected = functional.group_norm(x.float(), 32, weight, bias, 1e-5)
    found = group_norm(x, 32, 1e-5, weight, bias, silu=False)
    assert torch.allclose(found.float(), expected, atol=TOLERANCE[dtype], rtol=0)
    projections = image(3, 200, seed=3)
    scale, shift = projections[:, 4:100], projections[:, 100:196]
    expected = functional.silu(expected * (1 + scale)[:, :, None, None] + shift[:, :, None, None])
    found = group_norm(x, 32, 1e-5, weight, bias, silu=True, modulation=(scale, shift))
    assert torch.allclose(found.float(), expected, atol=4 * TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("changes", [{}, IMAGENET_LIKE], ids=["avatars", "imagenet-64"])
def test_a_network_of_tiles_is_the_same_network(tmp_path: Path, changes: dict[str, Any]) -> None:
    info = load_info(tiny_model(tmp_path / "model", **changes), "tiny")
    unet = load_unet(info)
    x, labels = image(2, *info.latent_shape), torch.tensor([1, 2])
    with torch.inference_mode():
        expected = unet(x, torch.tensor([3.0, 900.0]), class_labels=labels).sample
        projections = Projections(unet).rows([(3.0, 1), (900.0, 2)])
        body = UNetBody(unet)
        shapes = input_shapes(body, x, projections)
        tile_body(body, shapes, tile_norms(body))
        quicken(body, shapes, TileConv2d)
        found = body(x, projections)
    kinds = {type(module) for module in body.modules()}
    assert kinds >= {TileConv2d, TileGroupNorm, QuickResnet, QuickAttention}
    assert not kinds & {torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.Linear}
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_network_that_triton_cannot_compile_for_runs_as_it_was(tmp_path: Path) -> None:
    """As on a card with too little shared memory; any other fault is not hidden."""
    info = load_info(tiny_model(tmp_path / "model"), "tiny")

    def packed(error: Exception) -> ProjectedForward:
        def refuse(shapes: object, inputs: object) -> None:
            raise error

        form = ProjectedForward(load_unet(info), info, torch.device("cpu"), torch.float16)
        form._pack(info, refuse, "tiles", (*REFUSALS, *COMPILER_REFUSALS))
        return form

    assert packed(OutOfResources(200_000, 100_000, "shared memory")).plan == "projected"
    with pytest.raises(LookupError):
        packed(LookupError())

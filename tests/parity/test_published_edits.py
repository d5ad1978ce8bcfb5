"""Edits against the published algorithm (openai/consistency_models, `iterative_*`), written again with matrices.

The published loops leave the first x to their caller and return the re-noised x of the schedule's last point; here
they begin as algorithm 4 of the paper does and keep the last replaced estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from service.diffusion.denoiser import denoise
from service.diffusion.noise import NoiseSource
from service.diffusion.operators import Edit
from service.diffusion.operators.colorize import LUMA, Colorize
from service.diffusion.operators.inpaint import Inpaint
from service.diffusion.operators.stroke import Stroke, start_index
from service.diffusion.operators.super_resolution import SuperResolution
from service.diffusion.sampling import sample_image
from service.diffusion.schedule import NoiseSchedule
from tests.tiny import tiny_unet

SIDE, FACTOR, SEED = 16, 4, 11
SHAPE = (3, SIDE, SIDE)
SCHEDULE = NoiseSchedule()

Replacement = Callable[[Tensor, Tensor], Tensor]  # (known, estimate) -> mixed


@cache
def network() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    unet = tiny_unet("plain", sample_size=SIDE)
    return lambda x, time, labels: unet(x, time, class_labels=labels, return_dict=False)[0]


def picture(seed: int = 0) -> bytes:
    """uint8 [H, W, C] of strongly coloured blocks, so that constraints push colours out of range."""
    blocks = np.random.default_rng(seed).choice([0, 12, 128, 243, 255], (SIDE // FACTOR, SIDE // FACTOR, 3))
    return blocks.astype(np.uint8).repeat(FACTOR, 0).repeat(FACTOR, 1).tobytes()


def as_double(pixels: bytes) -> Tensor:
    values = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE, 3).astype(np.float64) / 127.5 - 1
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def orthogonal(first: list[float]) -> Tensor:
    """An orthogonal matrix whose first column points along `first`."""
    matrix = np.eye(len(first))
    matrix[:, 0] = np.asarray(first) / np.linalg.norm(first)
    found = np.linalg.qr(matrix)[0]
    return torch.from_numpy(found * np.sign(found[:, 0].sum()))


def luma_replacement() -> Replacement:
    basis = orthogonal(list(LUMA))

    def replace(known: Tensor, estimate: Tensor) -> Tensor:
        mixed = torch.einsum("bchw,cd->bdhw", estimate, basis)
        mixed[:, 0] = torch.einsum("bchw,cd->bdhw", known, basis)[:, 0]
        return torch.einsum("bdhw,cd->bchw", mixed, basis)

    return replace


def means_replacement() -> Replacement:
    basis = orthogonal([1.0] * FACTOR**2)
    blocks = SIDE // FACTOR

    def coordinates(image: Tensor) -> Tensor:
        cut = image.view(1, 3, blocks, FACTOR, blocks, FACTOR).permute(0, 1, 2, 4, 3, 5)
        return cut.reshape(1, 3, blocks, blocks, FACTOR**2) @ basis

    def replace(known: Tensor, estimate: Tensor) -> Tensor:
        mixed = coordinates(estimate)
        mixed[..., 0] = coordinates(known)[..., 0]
        cut = (mixed @ basis.T).view(1, 3, blocks, blocks, FACTOR, FACTOR)
        return cut.permute(0, 1, 2, 4, 3, 5).reshape(1, *SHAPE)

    return replace


def pixel_replacement(mask: bytes) -> Replacement:
    keep = 1 - torch.from_numpy(np.frombuffer(mask, np.uint8).reshape(1, 1, SIDE, SIDE).astype(np.float64))
    return lambda known, estimate: known * keep + estimate * (1 - keep)


def published(replace: Replacement, image: Tensor, sigmas: tuple[float, ...]) -> list[Tensor]:
    """Every replaced estimate of the published loop, in float64 but for the network."""
    noise = NoiseSource(SEED, SHAPE)
    known = replace(image, torch.zeros_like(image))
    x = known + SCHEDULE.sigma_max * noise.draw().double()
    estimates = []
    for step, sigma in enumerate(sigmas, start=1):
        estimate = denoise(network(), x.float(), [sigma], torch.tensor([3]), SCHEDULE).clamp(-1, 1)
        estimates.append(replace(known, estimate.double()))
        if step < len(sigmas):
            spread = np.sqrt(np.clip(sigmas[step], SCHEDULE.sigma_min, SCHEDULE.sigma_max) ** 2 - SCHEDULE.sigma_min**2)
            x = estimates[-1] + spread * noise.draw().double()
    return estimates


MASK = np.pad(np.ones((8, 8), np.uint8), ((2, 6), (5, 3))).tobytes()

CASES: dict[str, tuple[Edit, Replacement]] = {
    "inpaint": (Inpaint(picture(), MASK), pixel_replacement(MASK)),
    "colorize": (Colorize(picture()), luma_replacement()),
    "super-resolution": (SuperResolution(picture(), FACTOR), means_replacement()),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("timesteps", [[0], [22, 0], list(range(39, -1, -1))], ids=["1", "22,0", "40"])
def test_every_step_equals_the_published_loop(name: str, timesteps: list[int]) -> None:
    """On the same noise, before the pull-in, each estimate of an edit is that of the published algorithm."""
    edit, replace = CASES[name]
    sigmas = SCHEDULE.sigmas(timesteps)
    expected = published(replace, as_double(picture()), sigmas)
    got: list[Tensor] = []
    sample_image(
        network(),
        SCHEDULE,
        sigmas,
        seed=SEED,
        shape=SHAPE,
        class_label=3,
        edit=edit,
        on_step=lambda _, estimate: got.append(estimate),
    )
    assert len(expected) == len(got)
    for theirs, ours in zip(expected, got, strict=True):
        assert (theirs - ours).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["colorize", "super-resolution"])
def test_the_published_result_leaves_the_range(name: str) -> None:
    """Without a pull-in there would be something to cut off, so that the tests of the pull-in test something."""
    _, replace = CASES[name]
    last = published(replace, as_double(picture()), SCHEDULE.sigmas([22, 0]))[-1]
    assert last.abs().max() > 1.05


def test_a_stroke_run_is_the_multistep_loop_from_a_noised_image() -> None:
    """SDEdit: the painting, noised to the first level, then algorithm 1."""
    assert [start_index(s, SCHEDULE) for s in (0.6, 1.0, 0.001, 0.01)] == [16, 0, 39, 39]
    sigmas = tuple(SCHEDULE.sigma_at(i) for i in (16, 28))
    noise = NoiseSource(SEED, SHAPE)
    x = (as_double(picture()) + sigmas[0] * noise.draw().double()).float()
    x = denoise(network(), x, [sigmas[0]], torch.tensor([3]), SCHEDULE)
    x = x + noise.draw() * (sigmas[1] ** 2 - SCHEDULE.sigma_min**2) ** 0.5
    expected = denoise(network(), x, [sigmas[1]], torch.tensor([3]), SCHEDULE)
    edit = Stroke(picture())
    got = sample_image(network(), SCHEDULE, sigmas, seed=SEED, shape=SHAPE, class_label=3, edit=edit)
    assert (expected - got).abs().max() <= 1e-5

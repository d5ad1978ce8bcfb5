"""The mathematics of edits: projections, what they keep in the final picture, first states."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.diffusion.noise import NoiseSource
from service.diffusion.operators import Edit, Opening, edit_name
from service.diffusion.operators.base import as_tensor
from service.diffusion.operators.colorize import LUMA, Colorize
from service.diffusion.operators.denoise import Denoise
from service.diffusion.operators.inpaint import Inpaint
from service.diffusion.operators.interpolate import Interpolate, slerp
from service.diffusion.operators.stroke import Stroke, start_index
from service.diffusion.operators.super_resolution import SuperResolution
from service.diffusion.sampling import quantise, to_unit_range
from service.diffusion.schedule import NoiseSchedule
from service.engine.protocol import Submit, decode_to_engine, frame
from service.engine.request import Sample

SIDE = 8
SHAPE = (3, SIDE, SIDE)
LIKE = torch.zeros(1, *SHAPE)


def pixels(seed: int, levels: list[int]) -> bytes:
    return np.random.default_rng(seed).choice(levels, (SIDE, SIDE, 3)).astype(np.uint8).tobytes()


def as_array(image: bytes) -> np.ndarray[Any, Any]:
    return np.frombuffer(image, np.uint8).reshape(SIDE, SIDE, 3)


def some_mask(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 2, (SIDE, SIDE), np.uint8).tobytes()


def edits(image: bytes, mask: bytes) -> list[Edit]:
    return [
        Inpaint(image, mask),
        Colorize(image),
        SuperResolution(image, 4),
        Stroke(image),
        Denoise(image),
        Denoise(np.zeros(SHAPE, np.float32).tobytes(), noisy=True),
        Interpolate(7, 0.25),
    ]


def finished(edit: Edit, estimate: Tensor) -> np.ndarray[Any, Any]:
    """The uint8 picture [H, W, C] of a run whose last estimate is this one."""
    operator = edit.operator(LIKE)
    assert operator is not None
    image = operator.pull_in(operator(estimate))
    return quantise(to_unit_range(image)[0].permute(1, 2, 0)).numpy()


estimates = st.builds(
    lambda seed, scale: (torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) * scale).clamp(-1, 1),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.1, 1.0, 100.0]),
)
pictures = st.builds(
    pixels, st.integers(0, 2**32), st.sampled_from([[0], [255], [0, 255], [1, 254], list(range(256)), [128]])
)


@settings(deadline=None, max_examples=200)
@given(pictures, estimates, st.integers(0, 2**32))
def test_known_pixels_come_back_exactly(image: bytes, estimate: Tensor, seed: int) -> None:
    mask = some_mask(seed)
    got = finished(Inpaint(image, mask), estimate)
    keep = np.frombuffer(mask, np.uint8).reshape(SIDE, SIDE) == 0
    assert (as_array(image)[keep] == got[keep]).all()


@settings(deadline=None, max_examples=300)
@given(pictures, estimates)
def test_luma_is_kept_to_one_level(image: bytes, estimate: Tensor) -> None:
    got = finished(Colorize(image), estimate)
    assert abs(as_array(image) @ np.array(LUMA) - got @ np.array(LUMA)).max() <= 1


@settings(deadline=None, max_examples=300)
@given(pictures, estimates, st.sampled_from([1, 2, 4, 8]))
def test_block_means_are_kept_to_one_level(image: bytes, estimate: Tensor, factor: int) -> None:
    def means(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return picture.reshape(SIDE // factor, factor, SIDE // factor, factor, 3).mean((1, 3))

    got = finished(SuperResolution(image, factor), estimate)
    assert abs(means(as_array(image)) - means(got)).max() <= 1


@settings(deadline=None, max_examples=50)
@given(pictures, estimates)
def test_operators_are_projections(image: bytes, estimate: Tensor) -> None:
    """Applying one twice equals applying it once, and moving the image itself does nothing."""
    for edit in edits(image, some_mask(1))[:3]:
        operator = edit.operator(LIKE)
        assert operator is not None
        once = operator(estimate)
        assert (once - operator(once)).abs().max() <= 1e-6
        unmoved = as_tensor(image, LIKE)
        assert (unmoved - operator(unmoved)).abs().max() <= 1e-6


@settings(deadline=None, max_examples=50)
@given(pictures, estimates)
def test_a_pull_in_touches_only_what_is_out_of_range(image: bytes, estimate: Tensor) -> None:
    operator = Colorize(image).operator(LIKE)
    replaced = operator(estimate)
    pulled = operator.pull_in(replaced)
    assert pulled.abs().max() <= 1 + 1e-6
    inside = (replaced.abs() <= 1).all(1, keepdim=True).expand_as(replaced)
    assert torch.equal(replaced[inside], pulled[inside])


def test_a_non_finite_estimate_stays_so() -> None:
    """A fault of the network is not painted over."""
    estimate = torch.full((1, *SHAPE), math.nan)
    for edit in edits(pixels(0, [0, 255]), bytes([1] * SIDE**2))[:3]:
        operator = edit.operator(LIKE)
        assert operator is not None
        assert operator.pull_in(operator(estimate)).isnan().all()


def opening(sigma: float = 80.0) -> Opening:
    return Opening(NoiseSource(3, SHAPE).draw(), sigma, NoiseSchedule(), lambda seed: NoiseSource(seed, SHAPE).draw())


def test_first_states_add_noise_of_the_right_level() -> None:
    """Algorithm 4 begins at the known part plus the highest level, SDEdit and denoising at the image plus theirs."""
    image, mask = pixels(0, [0, 255]), some_mask(2)
    draw, whole = opening().latents, as_tensor(image, LIKE)
    repaint = torch.from_numpy(np.frombuffer(mask, np.uint8).reshape(SIDE, SIDE).copy()).bool()
    known = whole.masked_fill(repaint, 0)
    assert torch.equal(known + 80.0 * draw, Inpaint(image, mask).first_state(opening(5.0)))
    assert torch.equal(whole + 5.0 * draw, Stroke(image).first_state(opening(5.0)))
    assert torch.equal(whole + 0.5 * draw, Denoise(image).first_state(opening(0.5)))
    noisy = np.linspace(-3, 3, 3 * SIDE**2, dtype=np.float32).reshape(SHAPE)
    assert (noisy == Denoise(noisy.tobytes(), noisy=True).first_state(opening(0.5))[0].numpy()).all()


def test_interpolation_ends_at_both_seeds() -> None:
    start, end = NoiseSource(3, SHAPE).draw(), NoiseSource(4, SHAPE).draw()
    assert torch.equal(start * 80.0, Interpolate(4, 0.0).first_state(opening()))
    assert torch.equal(end * 80.0, Interpolate(4, 1.0).first_state(opening()))
    assert torch.equal(start, slerp(start, start, 0.3))


@given(st.floats(0, 1))
@settings(deadline=None)
def test_interpolation_goes_along_the_arc(t: float) -> None:
    """Between draws of equal length, every point has that length and divides the angle."""
    start, end = (draw / draw.norm() for draw in (NoiseSource(s, SHAPE).draw() for s in (3, 4)))
    point = slerp(start, end, t)
    angle = math.acos(float((start * end).sum()))
    assert abs(float(point.norm()) - 1) <= 1e-5
    assert abs(float((start * point).sum()) - math.cos(t * angle)) <= 1e-5


def test_every_edit_survives_the_way_to_the_engine() -> None:
    for edit in edits(pixels(0, [0, 255]), some_mask(0)):
        sample = Sample(id=1, request=1, client="", model="m", seed=0, class_label=None, sigmas=(1.0,), edit=edit)
        received = decode_to_engine(frame(Submit((sample,)))[4:])
        assert isinstance(received, Submit)
        assert edit == received.samples[0].edit
        assert type(edit) is type(received.samples[0].edit)


def test_an_unknown_edit_is_no_message() -> None:
    body = frame(Submit((Sample(id=1, request=1, client="", model="m", seed=0, class_label=None, sigmas=(1.0,)),)))[4:]
    raw = msgspec.msgpack.decode(body)
    raw["samples"][0]["edit"] = {"edit": "sharpen"}
    with pytest.raises(msgspec.ValidationError):
        decode_to_engine(msgspec.msgpack.encode(raw))


def test_edits_have_the_names_of_their_routes() -> None:
    assert {"inpaint", "colorize", "super-resolution", "stroke", "denoise", "interpolate"} == {
        edit_name(edit) for edit in edits(b"", b"")
    }


def test_halves_are_rounded_to_even() -> None:
    levels = torch.arange(255) + 0.5
    images = levels / 255
    exact = images * 255 == levels
    assert exact.sum() > 50
    assert torch.equal(quantise(images)[exact], torch.tensor(np.rint(levels.numpy()))[exact].to(torch.uint8))


def test_the_weakest_stroke_is_on_the_grid() -> None:
    assert [start_index(strength, NoiseSchedule()) for strength in (1.0, 0.75, 0.01)] == [0, 10, 39]

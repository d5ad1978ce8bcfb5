"""From a valid edit and its pictures to the samples the engine is asked for.

`plan_inpaint` also serves a route that speaks other words: with `transparent` its mask says by transparency, not
by white, what is to be repainted. Cheap checks come first: a picture is decoded when nothing else is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np

from service.api.context import Context, Origin
from service.api.edit_schemas import (
    ColorizeRequest,
    DenoiseRequest,
    EditRequest,
    InpaintRequest,
    InterpolateRequest,
    StrokeRequest,
    SuperResolutionRequest,
)
from service.api.generation import LATE
from service.api.latents import read_array
from service.api.negotiation import Choice
from service.api.picture_input import Order, Picture, Refusal, Use
from service.api.planning import (
    Plan,
    Visits,
    check_steps,
    plan_images,
    resolve_timesteps,
    seeds_of,
    steps_name,
    steps_of,
    visits_of,
    wrong,
)
from service.api.served import ServedModel
from service.diffusion.operators import Edit
from service.diffusion.operators.colorize import Colorize
from service.diffusion.operators.denoise import Denoise
from service.diffusion.operators.inpaint import Inpaint
from service.diffusion.operators.interpolate import Interpolate
from service.diffusion.operators.stroke import Stroke, start_index
from service.diffusion.operators.super_resolution import SuperResolution
from service.errors import DeadlineExceeded, InvalidRequest, UnknownModel
from service.models.info import ModelInfo

__all__ = [
    "Asked",
    "plan_colorize",
    "plan_denoise",
    "plan_inpaint",
    "plan_interpolate",
    "plan_stroke",
    "plan_super_resolution",
]

STROKE_STEPS: Final = 4
_NPY: Final = b"\x93NUMPY"


class Asked(msgspec.Struct, frozen=True):
    """What planning needs beside the body: the app, where the request comes from, the answer's form."""

    context: Context
    origin: Origin
    choice: Choice


async def plan_inpaint(
    asked: Asked, body: InpaintRequest, image: bytes, mask: bytes | None, *, transparent: bool = False
) -> Plan:
    """Repaints where `mask` is white (>= 128), or transparent (alpha < 128) if so told.

    Without a mask, `image` itself says it by its transparent pixels. Raises `InvalidRequest`.
    """
    model = _model(asked, body)
    plan = _planned(asked, body, model, lambda: _every_step(body, model.info))
    picture = await _read(asked, plan, body, image, "picture" if mask is not None else "cutout")
    repaint = picture.mask
    if mask is not None:
        use: Use = "transparency" if transparent else "mask"
        repaint = (await _read(asked, plan, body, mask, use, field="mask")).mask
    return _with_edit(plan, Inpaint(picture.pixels, repaint))


async def plan_colorize(asked: Asked, body: ColorizeRequest, image: bytes) -> Plan:
    """Keeps the luma of `image`. Raises `InvalidRequest`."""
    model = _model(asked, body)
    if model.info.channels != 3:
        raise wrong("model", "not_coloured", "This model makes no colours.")
    plan = _planned(asked, body, model, lambda: _every_step(body, model.info))
    return _with_edit(plan, Colorize((await _read(asked, plan, body, image)).pixels))


async def plan_super_resolution(asked: Asked, body: SuperResolutionRequest, image: bytes) -> Plan:
    """Keeps the block means of `image`. Raises `InvalidRequest`."""
    model = _model(asked, body)
    side, channels, factor = model.info.image_size, model.info.channels, body.factor

    def visits() -> Visits:
        if side % factor:
            raise wrong("factor", "factor_does_not_divide", f"Should divide the model's side, {side}.")
        return _every_step(body, model.info)

    plan = _planned(asked, body, model, visits)
    picture = await _read(asked, plan, body, image, small_side=side // factor)
    pixels = picture.pixels
    if picture.side != side:
        small = np.frombuffer(pixels, np.uint8).reshape(picture.side, picture.side, channels)
        pixels = small.repeat(factor, 0).repeat(factor, 1).tobytes()
    return _with_edit(plan, SuperResolution(pixels, factor))


async def plan_stroke(asked: Asked, body: StrokeRequest, image: bytes) -> Plan:
    """Begins at `image`, noised. Raises `InvalidRequest`."""
    model = _model(asked, body)
    plan = _planned(asked, body, model, lambda: _from_the_middle(body, model.info))
    return _with_edit(plan, Stroke((await _read(asked, plan, body, image)).pixels))


async def plan_denoise(asked: Asked, body: DenoiseRequest, image: bytes) -> Plan:
    """One pass from `sigma`; `image` may be a `.npy` that is already that noisy. Raises `InvalidRequest`."""
    model = _model(asked, body)
    plan = _planned(asked, body, model, lambda: _one_pass(body, model.info))
    if not image.startswith(_NPY):
        return _with_edit(plan, Denoise((await _read(asked, plan, body, image)).pixels))
    return _with_edit(plan, Denoise(_noisy(image, model.info), noisy=True))


def plan_interpolate(asked: Asked, body: InterpolateRequest) -> Plan:
    """`frames` samples of `seed_from`, each begun a little nearer to `seed_to`. Raises `InvalidRequest`."""
    model, frames = _model(asked, body), body.frames
    plan = plan_images(
        body,
        model,
        asked.context.limits,
        asked.choice,
        client=asked.origin.client,
        arrived=asked.origin.arrived,
        count=(frames, "frames"),
        seeds=lambda: [body.seed_from] * frames,
        visits=lambda: visits_of(body, model.info),
    )
    return _with_edits(plan, [Interpolate(body.seed_to, frame / (frames - 1)) for frame in range(frames)])


# -- the steps of each


def _every_step(body: EditRequest, model: ModelInfo) -> Visits:
    return visits_of(body, model, default_steps=model.schedule.num_train_timesteps)


def _from_the_middle(body: StrokeRequest, model: ModelInfo) -> Visits:
    """Evenly spaced levels from the one that `strength` says, or explicit ones."""
    schedule = model.schedule
    check_steps(body)
    if body.timesteps is not None:
        if "strength" in body.model_fields_set:
            raise wrong("strength", "conflict", "Give either timesteps or strength, not both.")
        timesteps = resolve_timesteps(model, body.timesteps, 0)
        return Visits(timesteps, schedule.sigmas(timesteps))
    start = start_index(body.strength, schedule)
    left = schedule.num_train_timesteps - start
    steps = steps_of(body, min(STROKE_STEPS, left))
    if steps > left:
        raise wrong(steps_name(body), "steps_out_of_range", f"Should be from 1 to {left} at this strength.")
    timesteps = tuple(start + i * (left // steps) for i in reversed(range(steps)))
    return Visits(timesteps, schedule.sigmas(timesteps))


def _one_pass(body: DenoiseRequest, model: ModelInfo) -> Visits:
    check_steps(body)
    if body.timesteps is not None or steps_of(body, 1) != 1:
        raise wrong(steps_name(body), "one_pass", "Denoising is one pass, from sigma.")
    low, high = model.schedule.sigma_min, model.schedule.sigma_max
    if not low <= body.sigma <= high:
        raise wrong("sigma", "sigma_out_of_range", f"Should be from {low:g} to {high:g} for this model.")
    return Visits((), (float(body.sigma),))


# -- what they have in common


def _model(asked: Asked, body: EditRequest | InterpolateRequest) -> ServedModel:
    models = asked.context.models
    try:
        return models.default if body.model is None else models.find(body.model)
    except UnknownModel as error:
        raise InvalidRequest(str(error), loc=("body", "model"), code="unknown_model") from None


def _planned(asked: Asked, body: EditRequest, model: ServedModel, visits: Callable[[], Visits]) -> Plan:
    return plan_images(
        body,
        model,
        asked.context.limits,
        asked.choice,
        client=asked.origin.client,
        arrived=asked.origin.arrived,
        count=(body.batch_size, "batch_size"),
        seeds=lambda: seeds_of(body),
        visits=visits,
    )


async def _read(
    asked: Asked,
    plan: Plan,
    body: EditRequest,
    data: bytes,
    use: Use = "picture",
    *,
    field: str = "image",
    small_side: int = 0,
) -> Picture:
    order = Order(data, use, body.fit, plan.model.image_size, plan.model.channels, small_side)
    try:
        async with asyncio.timeout(plan.deadline - time.monotonic()):
            answer = await asked.context.pictures.read(order)
    except TimeoutError:
        raise DeadlineExceeded(LATE) from None
    if isinstance(answer, Refusal):
        raise wrong("mask" if answer.code == "mask_missing" else field, answer.code, answer.message)
    return answer


def _noisy(data: bytes, model: ModelInfo) -> bytes:
    """The float32 [C, H, W] of a `.npy`, with or without a batch dimension of 1."""
    (noisy,) = read_array(data, (1, *model.latent_shape), field="image")
    return noisy


def _with_edit(plan: Plan, edit: Edit) -> Plan:
    return _with_edits(plan, [edit] * len(plan.samples))


def _with_edits(plan: Plan, edits: Sequence[Edit]) -> Plan:
    replace = msgspec.structs.replace
    pairs = zip(plan.samples, edits, strict=True)
    return replace(plan, samples=tuple(replace(sample, edit=edit) for sample, edit in pairs))

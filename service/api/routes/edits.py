"""`POST /v1/edits/...` and `POST /v1/interpolate`: zero-shot edits of the client's pictures."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request, Response

from service.api.context import context_of, origin_of
from service.api.disconnect import until_disconnect
from service.api.edit_body import EditBody, read_edit_body
from service.api.edit_openapi import edit_body_schema, json_body_schema
from service.api.edit_planning import (
    Asked,
    plan_colorize,
    plan_denoise,
    plan_inpaint,
    plan_interpolate,
    plan_stroke,
    plan_super_resolution,
)
from service.api.edit_schemas import (
    ColorizeRequest,
    DenoiseRequest,
    InpaintRequest,
    InterpolateRequest,
    StrokeRequest,
    SuperResolutionRequest,
)
from service.api.generation import observed
from service.api.negotiation import negotiate
from service.api.planning import Plan
from service.api.query import read_query
from service.api.responding import respond
from service.api.routes.generate import RESPONSES
from service.api.schemas import ImageRequest, parse_body
from service.api.strict_json import read_json

__all__ = ["router"]

router = APIRouter()

_TAGS: Final[Any] = ["edits"]
_Body = TypeVar("_Body", bound=ImageRequest)


async def _edit(
    request: Request,
    name: str,
    kind: type[_Body],
    planning: Callable[[Asked, _Body, EditBody], Coroutine[Any, Any, Plan]],
    *files: str,
) -> Response:
    """One edit, from the request to its answer; without `files` its body is JSON."""
    context, origin = context_of(request), origin_of(request)
    with observed(context.metrics, name) as observation:
        read_query(request)
        read = await read_edit_body(request, context, *files) if files else EditBody(await read_json(request), {})
        body = parse_body(kind, read.fields)
        choice = negotiate(", ".join(request.headers.getlist("accept")) or None, body.wanted_format)
        plan = await until_disconnect(request, planning(Asked(context, origin, choice), body, read))
        return await respond(request, context, plan, choice.form, origin, observation)


@router.post(
    "/v1/edits/inpaint",
    operation_id="inpaint",
    summary="Repaint a part of a picture",
    tags=_TAGS,
    responses=RESPONSES,
    openapi_extra=edit_body_schema(InpaintRequest, {"seed": 42, "num_inference_steps": 20}, "image", "mask"),
)
async def inpaint(request: Request) -> Response:
    """Repaints where the mask is white; known pixels come back exactly in lossless formats."""

    async def planning(asked: Asked, body: InpaintRequest, read: EditBody) -> Plan:
        return await plan_inpaint(asked, body, read.image, read.files.get("mask"))

    return await _edit(request, "inpaint", InpaintRequest, planning, "image", "mask")


@router.post(
    "/v1/edits/colorize",
    operation_id="colorize",
    summary="Colour a picture",
    tags=_TAGS,
    responses=RESPONSES,
    openapi_extra=edit_body_schema(ColorizeRequest, {"batch_size": 2, "seed": 42}, "image"),
)
async def colorize(request: Request) -> Response:
    """Makes colours; the luma of the picture is kept to 1/255."""

    async def planning(asked: Asked, body: ColorizeRequest, read: EditBody) -> Plan:
        return await plan_colorize(asked, body, read.image)

    return await _edit(request, "colorize", ColorizeRequest, planning, "image")


@router.post(
    "/v1/edits/super-resolution",
    operation_id="super_resolution",
    summary="Enlarge a picture",
    tags=_TAGS,
    responses=RESPONSES,
    openapi_extra=edit_body_schema(SuperResolutionRequest, {"factor": 4, "seed": 42}, "image"),
)
async def super_resolution(request: Request) -> Response:
    """Makes detail; the means of `factor` by `factor` blocks are kept to 1/255."""

    async def planning(asked: Asked, body: SuperResolutionRequest, read: EditBody) -> Plan:
        return await plan_super_resolution(asked, body, read.image)

    return await _edit(request, "super-resolution", SuperResolutionRequest, planning, "image")


@router.post(
    "/v1/edits/stroke",
    operation_id="stroke",
    summary="Make a picture from a painting",
    tags=_TAGS,
    responses=RESPONSES,
    openapi_extra=edit_body_schema(StrokeRequest, {"strength": 0.6, "seed": 42}, "image"),
)
async def stroke(request: Request) -> Response:
    """SDEdit: noises the painting to a level that `strength` says and denoises it from there."""

    async def planning(asked: Asked, body: StrokeRequest, read: EditBody) -> Plan:
        return await plan_stroke(asked, body, read.image)

    return await _edit(request, "stroke", StrokeRequest, planning, "image")


@router.post(
    "/v1/edits/denoise",
    operation_id="denoise",
    summary="Denoise a picture in one pass",
    tags=_TAGS,
    responses=RESPONSES,
    openapi_extra=edit_body_schema(DenoiseRequest, {"sigma": 0.5, "seed": 42}, "image"),
)
async def denoise(request: Request) -> Response:
    """Adds seeded noise of level `sigma` and denoises it in one pass; a `.npy` is taken as already noisy."""

    async def planning(asked: Asked, body: DenoiseRequest, read: EditBody) -> Plan:
        return await plan_denoise(asked, body, read.image)

    return await _edit(request, "denoise", DenoiseRequest, planning, "image")


@router.post(
    "/v1/interpolate",
    operation_id="interpolate",
    summary="Make the pictures between two seeds",
    tags=_TAGS,
    responses=RESPONSES,
    openapi_extra=json_body_schema(
        InterpolateRequest, {"seed_from": 42, "seed_to": 43, "frames": 4, "class_labels": 0, "num_inference_steps": 2}
    ),
)
async def interpolate(request: Request) -> Response:
    """Spherical interpolation between the first draws of two seeds; each image carries its `t`."""

    async def planning(asked: Asked, body: InterpolateRequest, read: EditBody) -> Plan:
        return plan_interpolate(asked, body)

    return await _edit(request, "interpolate", InterpolateRequest, planning)

"""`POST /v1/generate`: images from a class, a seed and steps."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from service.api.answers import GenerateAnswer
from service.api.context import Context, Origin, context_of, origin_of
from service.api.generation import Observation, observed
from service.api.negotiation import IMAGE_TYPES, AnswerForm, negotiate
from service.api.planning import plan_generate
from service.api.query import read_query
from service.api.responding import respond
from service.api.schemas import GenerateRequest, parse_body
from service.api.strict_json import read_json
from service.errors import InvalidRequest, UnknownModel

__all__ = ["RESPONSES", "router"]

router = APIRouter()

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLES: Final = {
    "one": {"summary": "One image of the default model", "value": {}},
    "class": {"summary": "A class by name, a fixed seed", "value": {"class_labels": "thumbs", "seed": 42}},
    "batch": {
        "summary": "Four images in two chosen steps",
        "value": {"batch_size": 4, "class_labels": [0, 1, 2, None], "seed": 7, "timesteps": [22, 0]},
    },
    "jpeg": {
        "summary": "Two seeds, four evenly spaced steps, as JPEG",
        "value": {
            "batch_size": 2,
            "seed": [3, 1000],
            "num_inference_steps": 4,
            "output_format": "jpeg",
            "quality": 85,
        },
    },
}
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": GenerateAnswer,
        "description": "The images, in the form that `Accept` asks for.",
        "content": {
            **dict.fromkeys(IMAGE_TYPES.values(), _BINARY),
            **{form.value: _BINARY for form in (AnswerForm.MULTIPART, AnswerForm.ZIP, AnswerForm.NPY)},
            AnswerForm.EVENTS.value: {"schema": {"type": "string"}},
        },
    }
}


@router.post(
    "/v1/generate",
    operation_id="generate",
    summary="Make images",
    tags=["images"],
    responses=RESPONSES,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": GenerateRequest.model_json_schema(), "examples": _EXAMPLES}},
        }
    },
)
async def generate(request: Request) -> Response:
    """Makes `batch_size` images. The answer's form is chosen by `Accept`; JSON is the default."""
    context, origin = context_of(request), origin_of(request)
    with observed(context.metrics, "generate") as observation:
        return await _generate(request, context, origin, observation)


async def _generate(request: Request, context: Context, origin: Origin, observation: Observation) -> Response:
    read_query(request)
    body = parse_body(GenerateRequest, await read_json(request))
    choice = negotiate(", ".join(request.headers.getlist("accept")) or None, body.wanted_format)
    try:
        model = context.models.default if body.model is None else context.models.find(body.model)
    except UnknownModel as error:
        raise InvalidRequest(str(error), loc=("body", "model"), code="unknown_model") from None
    planning = partial(plan_generate, body, model, context.limits, choice, client=origin.client, arrived=origin.arrived)
    # With latents there are megabytes to decode and to look through.
    plan = planning() if body.latents is None else await context.renderer.call(planning)
    return await respond(request, context, plan, choice.form, origin, observation)

"""`POST /v1/images/generations`: `POST /v1/generate` as OpenAI's clients know it."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from service.api.context import Context, Origin, context_of, origin_of
from service.api.generation import Observation, observed
from service.api.openai_answers import ImagesAnswer
from service.api.openai_responding import choice_of, model_of, openai_respond
from service.api.openai_schemas import ImagesRequest, own_request, parse_openai, renamed
from service.api.planning import plan_generate
from service.api.query import read_query
from service.api.schemas import GenerateRequest, parse_body
from service.api.strict_json import read_json
from service.errors import InvalidRequest

__all__ = ["router"]

router = APIRouter()

_EXAMPLES: Final = {
    "one": {"summary": "One image of a class", "value": {"prompt": "thumbs"}},
    "any": {
        "summary": "Four images, the seeds decide their classes",
        "value": {"prompt": "", "n": 4, "size": "auto", "response_format": "b64_json", "output_format": "webp"},
    },
    "stream": {
        "summary": "A stream with three previews, with fields of this service's own",
        "value": {"prompt": "lorelei", "stream": True, "partial_images": 3, "num_inference_steps": 8, "seed": 7},
    },
}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": ImagesAnswer,
        "description": "The images; with `stream` the events `image_generation.partial_image` and `.completed`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post(
    "/v1/images/generations",
    operation_id="create_image",
    summary="Make images, OpenAI-compatible",
    tags=["openai"],
    responses=_RESPONSES,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ImagesRequest.model_json_schema(), "examples": _EXAMPLES}},
        }
    },
)
async def create_image(request: Request) -> Response:
    """Makes `n` images of the class that `prompt` names. `Accept` is not looked at; `stream` chooses the form."""
    context, origin = context_of(request), origin_of(request)
    with observed(context.metrics, "images_generations") as observation:
        return await _create(request, context, origin, observation)


async def _create(request: Request, context: Context, origin: Origin, observation: Observation) -> Response:
    read_query(request)
    body = parse_openai(ImagesRequest, await read_json(request))
    model = model_of(context, body)
    try:
        own = parse_body(GenerateRequest, own_request(body, GenerateRequest))
        planning = partial(
            plan_generate,
            own,
            model,
            context.limits,
            choice_of(body),
            client=origin.client,
            arrived=origin.arrived,
        )
        plan = planning() if own.latents is None else await context.renderer.call(planning)
    except InvalidRequest as error:
        raise renamed(error, body) from None
    return await openai_respond(request, context, plan, body, origin, observation, "image_generation")

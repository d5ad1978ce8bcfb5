"""`POST /v1/images/edits`: `POST /v1/edits/inpaint` as OpenAI's clients know it."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from service.api.context import Context, Origin, context_of, origin_of
from service.api.disconnect import until_disconnect
from service.api.edit_planning import Asked, plan_inpaint
from service.api.edit_schemas import InpaintRequest
from service.api.generation import Observation, observed
from service.api.openai_answers import ImagesAnswer
from service.api.openai_form import read_openai_form
from service.api.openai_responding import choice_of, model_of, openai_respond
from service.api.openai_schemas import ImageEditsRequest, own_request, parse_openai, renamed
from service.api.query import read_query
from service.api.schemas import parse_body
from service.errors import InvalidRequest

__all__ = ["router"]

router = APIRouter()

_FILES: Final = {
    "image": {"type": "string", "format": "binary", "description": "A PNG, JPEG or WebP file."},
    "mask": {
        "type": "string",
        "format": "binary",
        "description": "A PNG or WebP file whose transparent pixels are repainted; left out, those of `image` are.",
    },
}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": ImagesAnswer,
        "description": "The images; with `stream` the events `image_edit.partial_image` and `image_edit.completed`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def _body_schema() -> dict[str, Any]:
    fields = ImageEditsRequest.model_json_schema()
    schema = {
        **fields,
        "properties": {**_FILES, **fields["properties"]},
        "required": ["image", *fields.get("required", ())],
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


@router.post(
    "/v1/images/edits",
    operation_id="create_image_edit",
    summary="Repaint a part of a picture, OpenAI-compatible",
    tags=["openai"],
    responses=_RESPONSES,
    openapi_extra=_body_schema(),
)
async def create_image_edit(request: Request) -> Response:
    """Repaints the transparent pixels of `mask`, or of `image` itself. `prompt` is the class."""
    context, origin = context_of(request), origin_of(request)
    with observed(context.metrics, "images_edits") as observation:
        return await _create(request, context, origin, observation)


async def _create(request: Request, context: Context, origin: Origin, observation: Observation) -> Response:
    read_query(request)
    form = await read_openai_form(request)
    body = parse_openai(ImageEditsRequest, form.fields)
    model_of(context, body)
    try:
        own = parse_body(InpaintRequest, own_request(body, InpaintRequest))
        asked = Asked(context, origin, choice_of(body))
        planning = plan_inpaint(asked, own, form.image, form.mask, transparent=True)
        plan = await until_disconnect(request, planning)
    except InvalidRequest as error:
        raise renamed(error, body) from None
    return await openai_respond(request, context, plan, body, origin, observation, "image_edit")

"""`GET /v1/models` and `GET /v1/models/{model}`: what is served, in OpenAI's shape and with what clients need."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from service.api.answers import ClassEntry, ModelEntry, ModelList, SizeEntry
from service.api.context import Context, context_of
from service.api.query import read_query
from service.models.info import ModelInfo

__all__ = ["router"]

router = APIRouter()

_LIST: Final[dict[int | str, dict[str, Any]]] = {200: {"model": ModelList, "description": "The models."}}
_ONE: Final[dict[int | str, dict[str, Any]]] = {200: {"model": ModelEntry, "description": "The model."}}


@router.api_route(
    "/v1/models",
    methods=["GET", "HEAD"],
    operation_id="list_models",
    summary="The models served here",
    tags=["models"],
    response_class=Response,
    responses=_LIST,
)
async def list_models(request: Request) -> Response:
    """Every served model, the default first."""
    read_query(request)
    context = context_of(request)
    return _json(ModelList(object="list", data=[_entry(context, model.info) for model in context.models]))


@router.api_route(
    "/v1/models/{model}",
    methods=["GET", "HEAD"],
    operation_id="get_model",
    summary="One model",
    tags=["models"],
    response_class=Response,
    responses=_ONE,
)
async def get_model(request: Request, model: str) -> Response:
    """One served model, with its classes, noise levels and measured step times."""
    read_query(request)
    context = context_of(request)
    return _json(_entry(context, context.models.find(model).info))


def _json(answer: ModelList | ModelEntry) -> Response:
    # What the engine measured changes with a restart, so an answer is worth asking for again.
    return Response(msgspec.json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-cache"})


def _entry(context: Context, model: ModelInfo) -> ModelEntry:
    status, schedule = context.engine.status(model.name), model.schedule
    return ModelEntry(
        id=model.name,
        object="model",
        created=context.models.find(model.name).created,
        owned_by="onestep",
        revision=model.revision,
        image_size=model.image_size,
        channels=model.channels,
        class_conditional=model.class_conditional,
        classes=[ClassEntry(index=c.index, name=c.name, slug=c.slug) for c in model.classes],
        num_train_timesteps=schedule.num_train_timesteps,
        sigma_min=schedule.sigma_min,
        sigma_max=schedule.sigma_max,
        sigma_data=schedule.sigma_data,
        device=status.device if status else None,
        dtype=status.dtype if status else None,
        batch_sizes=[
            SizeEntry(size=size.size, step_seconds=size.seconds) for size in (status.batch_sizes if status else ())
        ],
        license=model.license,
    )

"""Submits a plan and answers in OpenAI's shape: what its generations and its edits have in common."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from service.api.context import Context, Origin
from service.api.disconnect import until_disconnect
from service.api.generation import Observation, Run, image_headers, server_timing
from service.api.negotiation import AnswerForm, Choice
from service.api.openai_answers import OpenAIWords, StreamPrefix, images_answer, preview_steps
from service.api.openai_schemas import OpenAIRequest
from service.api.planning import Plan
from service.api.rendering import image_entry
from service.api.served import ServedModel
from service.api.streaming import EventStream
from service.errors import InvalidRequest, UnknownModel

__all__ = ["choice_of", "model_of", "openai_respond"]


def choice_of(body: OpenAIRequest) -> Choice:
    """The form of the answer: `stream` says it, not `Accept`."""
    return Choice(AnswerForm.EVENTS if body.stream else AnswerForm.JSON, body.output_format)


def model_of(context: Context, body: OpenAIRequest) -> ServedModel:
    """The model that is asked for, at a size that it has. Raises `InvalidRequest`."""
    try:
        model = context.models.default if body.model is None else context.models.find(body.model)
    except UnknownModel as error:
        raise InvalidRequest(str(error), loc=("body", "model"), code="unknown_model") from None
    side = model.info.image_size
    if body.size not in ("auto", f"{side}x{side}"):
        raise InvalidRequest(
            f"Should be auto or {side}x{side} for this model.", loc=("body", "size"), code="size_not_available"
        )
    return model


async def openai_respond(
    request: Request,
    context: Context,
    plan: Plan,
    body: OpenAIRequest,
    origin: Origin,
    observation: Observation,
    prefix: StreamPrefix,
) -> Response:
    """The answer to a valid request. Raises what `service.api.responding.respond` raises."""
    previews = None
    if "callback_steps" not in body.model_fields_set:
        previews, period = preview_steps(body.partial_images, len(plan.sigmas))
        for sample in plan.samples:
            sample.preview_every = period
    run = Run(context, plan, choice_of(body).form, request_id=origin.request_id, arrived=origin.arrived)
    if body.stream:
        return EventStream(context, run, observation, OpenAIWords(plan, prefix, previews))
    try:
        return await until_disconnect(request, _whole(context, run, origin))
    finally:
        run.cancel()


async def _whole(context: Context, run: Run, origin: Origin) -> Response:
    plan = run.plan
    finished = await run.all_finished()
    began = time.monotonic()
    images = await context.renderer.images(finished)
    encode_seconds = time.monotonic() - began
    context.metrics.encode_time.observe(encode_seconds)
    timings = finished.timings(encode_seconds)
    answer = images_answer(plan, [image_entry(plan, image) for image in images], timings)
    return Response(
        await context.renderer.call(msgspec.json.encode, answer),
        media_type="application/json",
        headers={
            "Cache-Control": "no-store",
            "Server-Timing": server_timing(timings, origin.arrived),
            **image_headers(plan),
        },
    )

"""Submits a plan and answers in the form that was chosen: what generation and every edit have in common."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from service.api.context import Context, Origin
from service.api.disconnect import until_disconnect
from service.api.generation import Observation, Run, image_headers, server_timing
from service.api.negotiation import AnswerForm
from service.api.planning import Plan
from service.api.streaming import EventStream, EventWords

__all__ = ["respond"]


async def respond(
    request: Request, context: Context, plan: Plan, form: AnswerForm, origin: Origin, observation: Observation
) -> Response:
    """The answer to a valid request whose body has been read.

    For `AnswerForm.EVENTS` it is a stream, which ends `observation` itself. Raises what `submit` raises, and
    whatever the request ends in when it is no stream.
    """
    run = Run(context, plan, form, request_id=origin.request_id, arrived=origin.arrived)
    if form is AnswerForm.EVENTS:
        return EventStream(context, run, observation, EventWords(plan))
    try:
        rendered = await until_disconnect(request, run.result())
    finally:
        run.cancel()
    return Response(
        rendered.body,
        media_type=rendered.content_type,
        headers={
            "Cache-Control": "no-store",
            "Server-Timing": server_timing(rendered.timings, origin.arrived),
            "Vary": "Accept",
            **image_headers(plan),
        },
    )

"""`GET /v1/images/{model}/{class}/{seed}.{png|jpeg|webp}`: one image as a plain URL, for caches and `<img>`."""

from __future__ import annotations

import re
from typing import Any, Final, get_args

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from service.api.cache import CachedImage, GeneratedImage
from service.api.context import Context, Origin, context_of, origin_of
from service.api.disconnect import until_disconnect
from service.api.etag import image_etag, matches
from service.api.generation import NO_TIME, Run, image_headers, observed, server_timing
from service.api.negotiation import IMAGE_TYPES, AnswerForm, OutputFormat
from service.api.planning import Plan, any_class, plan_image, resolve_timesteps
from service.api.query import query_integer, query_integers, read_query
from service.engine.request import MAX_SEED
from service.errors import InvalidRequest, NotReady

__all__ = ["router"]

router = APIRouter()

_DIGITS: Final = re.compile(r"[0-9]{1,64}", re.ASCII)
_PINNED_AGE: Final = 31_536_000  # seconds, a year: the bytes of a pinned revision never change
_UNPINNED_AGE: Final = 3600  # seconds: the name may come to mean another revision

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The image.",
        "content": dict.fromkeys(IMAGE_TYPES.values(), _BINARY),
        "headers": {"ETag": {"schema": {"type": "string"}, "description": "Strong; changes only with the bytes."}},
    },
    304: {"description": "The client's copy, named by `If-None-Match`, is the image."},
}


def _parameter(
    place: str, name: str, description: str, schema: dict[str, Any], example: object = None
) -> dict[str, Any]:
    """Without an `example` a form that is made of this leaves it empty."""
    described = {
        "in": place,
        "name": name,
        "required": place == "path",
        "description": description,
        "schema": schema,
    }
    return described if example is None else {**described, "example": example}


_TEXT: Final = {"type": "string"}
_PARAMETERS: Final = [
    _parameter("path", "model", "`name`, or `name@revision` to pin the revision.", _TEXT, "avatars-32"),
    _parameter("path", "class", "A class index, a class slug, or `any`.", _TEXT, "any"),
    _parameter("path", "seed", "The image's seed.", {"type": "integer", "minimum": 0, "maximum": MAX_SEED}, 42),
    _parameter("path", "format", "The encoding.", {"enum": list(get_args(OutputFormat))}, "png"),
    _parameter("query", "steps", "Evenly spaced steps; 1 when left out.", {"type": "integer", "minimum": 1}, 2),
    _parameter("query", "timesteps", "Explicit steps, strictly descending, instead of `steps`: `22,0`.", _TEXT),
    _parameter("query", "quality", "Of `jpeg` and `webp` only.", {"type": "integer", "minimum": 1, "maximum": 100}),
]


class _ImageRun:
    """Makes the image of a plan and puts it into the cache."""

    def __init__(self, context: Context, plan: Plan, origin: Origin) -> None:
        self._context = context
        self._plan = plan
        self._run = Run(context, plan, AnswerForm.IMAGE, request_id=origin.request_id, arrived=origin.arrived)

    async def result(self) -> GeneratedImage:
        rendered = await self._run.result()
        # Not the ETag from before: the engine may have been replaced by one with other numerics meanwhile.
        image = CachedImage(image_etag(self._plan, self._run.fingerprint), rendered.body)
        self._context.image_cache.put(image)
        return GeneratedImage(image, rendered.timings)

    def cancel(self) -> None:
        self._run.cancel()


@router.api_route(
    "/v1/images/{model}/{class}/{seed}.{format}",
    methods=["GET", "HEAD"],  # one route: the Allow header of a 405 names those of one route
    operation_id="get_image",
    summary="One image as a URL",
    tags=["images"],
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra={"parameters": _PARAMETERS},
)
async def image(request: Request) -> Response:
    """The same picture, byte for byte, as `POST /v1/generate` gives for the same values."""
    context, origin = context_of(request), origin_of(request)
    with observed(context.metrics, "images"):
        return await _image(request, context, origin)


async def _image(request: Request, context: Context, origin: Origin) -> Response:
    plan, pinned = _plan(request, context, origin)
    etag = _etag(context, plan)
    headers = {
        "Cache-Control": _cache_control(context, pinned),
        "ETag": etag,
        **image_headers(plan),
    }
    results = context.metrics.response_cache_requests
    if matches(", ".join(request.headers.getlist("if-none-match")) or None, etag):
        results.labels("not_modified").inc()
        return Response(status_code=304, headers=headers)

    media_type = IMAGE_TYPES[plan.output_format]
    if request.method == "HEAD":
        known = context.image_cache.get(etag)
        response = Response(media_type=media_type, headers=headers)
        del response.headers["Content-Length"]
        if known is not None:
            response.headers["Content-Length"] = str(len(known.body))
        return response

    cached = context.image_cache.get(etag)
    if cached is not None:
        results.labels("hit").inc()
        headers["Server-Timing"] = server_timing(NO_TIME, origin.arrived, cache="hit")
        return Response(cached.body, media_type=media_type, headers=headers)

    joined = True

    def start() -> _ImageRun:
        nonlocal joined
        joined = False
        return _ImageRun(context, plan, origin)

    try:
        generated = await until_disconnect(request, context.image_flights.run(etag, start, plan.deadline))
    finally:
        results.labels("joined" if joined else "miss").inc()
    headers["ETag"] = generated.image.etag
    headers["Server-Timing"] = server_timing(generated.timings, origin.arrived, cache="joined" if joined else "miss")
    return Response(generated.image.body, media_type=media_type, headers=headers)


def _plan(request: Request, context: Context, origin: Origin) -> tuple[Plan, bool]:
    """The image that a URL names, and whether its revision is pinned."""
    path = request.path_params
    if path["format"] not in IMAGE_TYPES or _DIGITS.fullmatch(path["seed"]) is None:
        raise HTTPException(404)
    output_format: OutputFormat = path["format"]
    model, pinned = context.models.pinned(path["model"])
    label = model.classes.from_url(path["class"])
    seed = int(path["seed"])
    if seed > MAX_SEED:
        raise InvalidRequest(f"Should be at most {MAX_SEED}.", loc=("path", "seed"), code="seed_out_of_range")
    query = read_query(request, "steps", "timesteps", "quality")
    steps, timesteps = query_integer(query, "steps"), query_integers(query, "timesteps")
    if steps is not None and timesteps is not None:
        raise InvalidRequest("Give either timesteps or steps, not both.", loc=("query", "timesteps"), code="conflict")
    plan = plan_image(
        model.info,
        any_class(model.info, seed) if label is None else label,
        seed,
        resolve_timesteps(model.info, timesteps, 1 if steps is None else steps, place="query", steps_name="steps"),
        output_format,
        _quality(query, output_format),
        client=origin.client,
        deadline=origin.arrived + context.limits.request_timeout,
        bound=("query", "steps" if timesteps is None else "timesteps"),
    )
    return plan, pinned


def _quality(query: dict[str, str], output_format: OutputFormat) -> int | None:
    quality = query_integer(query, "quality")
    if quality is None:
        return None
    loc = ("query", "quality")
    if output_format == "png":
        raise InvalidRequest("Only jpeg and webp have a quality.", loc=loc, code="quality_of_lossless")
    if not 1 <= quality <= 100:
        raise InvalidRequest("Should be from 1 to 100.", loc=loc, code="quality_out_of_range")
    return quality


def _etag(context: Context, plan: Plan) -> str:
    """Raises `NotReady` until the model was ready for the first time: what decides the bytes is not known."""
    status = context.engine.status(plan.model.name)
    if status is None:
        raise NotReady(context.engine.not_ready_reason or "The model is not ready yet.", retry_after=5)
    return image_etag(plan, status.fingerprint)


def _cache_control(context: Context, pinned: bool) -> str:
    settings = context.settings
    scope = "private" if settings.api_keys and not settings.public_images else "public"
    return f"{scope}, max-age={_PINNED_AGE}, immutable" if pinned else f"{scope}, max-age={_UNPINNED_AGE}"

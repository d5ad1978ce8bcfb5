"""Probes for balancers and orchestrators, and the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from service.api.context import context_of
from service.api.lifecycle import Lifecycle
from service.api.problems import ProblemError, problem_response

__all__ = ["metrics_router", "probes_router"]

probes_router = APIRouter(tags=["operation"])
metrics_router = APIRouter(tags=["operation"])

METHODS = ["GET", "HEAD"]
NO_STORE = {"Cache-Control": "no-store"}


@probes_router.api_route("/livez", methods=METHODS, operation_id="livez", summary="Is the process alive?")
async def livez() -> Response:
    """200 while the HTTP process lives, also while a model loads and while the service stops."""
    return Response(b'{"status":"alive"}', media_type="application/json", headers=NO_STORE)


async def readyz(request: Request) -> Response:
    """200 when an engine is loaded, warm and making progress, and the service is not stopping; else 503."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    reason = context_of(request).engine.not_ready_reason
    if lifecycle.draining:
        problem = ProblemError("draining", "The service is stopping.")
    elif reason is not None:
        problem = ProblemError("not-ready", reason)
    else:
        return Response(b'{"status":"ready"}', media_type="application/json", headers=NO_STORE)
    return problem_response(request.scope, problem, counted=False)


probes_router.add_api_route(
    "/readyz", readyz, methods=METHODS, operation_id="readyz", summary="May requests be sent here?"
)
probes_router.add_api_route("/healthz", readyz, methods=METHODS, operation_id="healthz", summary="The same as /readyz")


@metrics_router.api_route("/metrics", methods=METHODS, operation_id="metrics", summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text, or OpenMetrics when `Accept` asks for it."""
    try:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # it compares whatever stands there for a version
        encode, content_type = choose_encoder("")
    body = encode(context_of(request).metrics.registry)
    return Response(body, headers={"Content-Type": content_type, "Vary": "Accept", **NO_STORE})

"""Builds the HTTP application from its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import __version__
from service.api import docs_page, page
from service.api.auth import ApiKeys
from service.api.context import Context
from service.api.lifecycle import Lifecycle
from service.api.middleware.access import Access
from service.api.middleware.body import BodyLimits
from service.api.middleware.cors import Cors
from service.api.middleware.faults import Faults
from service.api.middleware.frame import Frame
from service.api.middleware.paths import RootPath
from service.api.probes import metrics_router, probes_router
from service.api.problems import install_handlers
from service.api.routes import edits, generate, images, models, openai_edits, openai_generations
from service.engine.client import EngineClient
from service.metrics import Metrics
from service.models.info import ModelInfo
from service.settings import Settings

__all__ = ["create_app", "create_metrics_app"]


def _bare(title: str) -> FastAPI:
    """An application without FastAPI's own pages, see docs_page."""
    return FastAPI(
        title=title, version=__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    await context.engine.start()
    try:
        yield
    finally:
        await context.engine.close()
        await context.close()


def create_app(
    settings: Settings, infos: Mapping[str, ModelInfo], engine: EngineClient, metrics: Metrics | None = None
) -> FastAPI:
    """The application, ready to be served. Its lifespan starts the engine client and closes it.

    `infos` are the served models by name, the default first. `metrics` is the object that `engine` reports to.
    """
    app = _bare("Onestep")
    app.router.lifespan_context = _lifespan
    context = Context(settings, list(infos.values()), engine, metrics or Metrics())
    app.state.context = context
    app.state.lifecycle = lifecycle = Lifecycle()
    for router in (
        probes_router,
        docs_page.router,
        page.router,
        generate.router,
        edits.router,
        images.router,
        models.router,
        openai_generations.router,
        openai_edits.router,
    ):
        app.include_router(router)
    if settings.metrics_port is None:
        app.include_router(metrics_router)
    install_handlers(app)

    # Innermost first.
    app.add_middleware(BodyLimits, max_bytes=settings.max_body_bytes, timeout=settings.body_timeout)
    app.add_middleware(ApiKeys, keys=settings.api_keys, public_images=settings.public_images)
    app.add_middleware(Faults)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(Access, metrics=context.metrics)
    app.add_middleware(Frame, lifecycle=lifecycle)
    app.add_middleware(RootPath, root_path=settings.root_path)
    return app


def create_metrics_app(app: FastAPI) -> FastAPI:
    """The application for `metrics_port`: metrics and probes of `app`, without keys. It has no lifespan."""
    beside = _bare("Onestep metrics")
    beside.state.context = app.state.context
    beside.state.lifecycle = app.state.lifecycle
    beside.include_router(metrics_router)
    beside.include_router(probes_router)
    install_handlers(beside)
    beside.add_middleware(Faults)
    beside.add_middleware(Frame, lifecycle=app.state.lifecycle)
    return beside

"""What the routes work with: one per app, made at start, closed at the end."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request

from service.api.auth import client_of
from service.api.cache import ByteCache, GeneratedImage, SingleFlight
from service.api.picture_input_pool import PicturePool
from service.api.planning import Limits
from service.api.rendering import Renderer
from service.api.served import ServedModels
from service.engine.client import EngineClient
from service.metrics import Metrics
from service.models.info import ModelInfo
from service.settings import Settings

__all__ = ["Context", "Origin", "context_of", "origin_of"]


class Context:
    """Settings, models, engine and metrics of one app, and what its image routes share."""

    def __init__(self, settings: Settings, models: Sequence[ModelInfo], engine: EngineClient, metrics: Metrics) -> None:
        self.settings = settings
        self.models = ServedModels(models)
        self.engine = engine
        self.metrics = metrics
        self.limits = Limits(settings.max_client_batch_size, settings.request_timeout)
        self.renderer = Renderer()
        self.pictures = PicturePool()
        self.image_cache = ByteCache(settings.response_cache_bytes)
        self.image_flights: SingleFlight[GeneratedImage] = SingleFlight()

    async def close(self) -> None:
        """Ends the threads and the processes that read pictures."""
        self.renderer.close()
        await self.pictures.close()


def context_of(request: Request) -> Context:
    """The context of the app that a request came to: `app.state.context`."""
    context = request.app.state.context
    assert isinstance(context, Context)
    return context


class Origin(msgspec.Struct, frozen=True):
    """Where a request comes from."""

    request_id: str
    client: str  # whom to be fair to
    arrived: float  # time.monotonic() seconds, from which its deadline counts


def origin_of(request: Request) -> Origin:
    """The deadline counts from the request's head, the reading of the body included."""
    return Origin(request.state.request_id, client_of(request), request.state.arrived)

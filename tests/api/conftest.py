"""The real application over the counting engine, reached without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api.app import create_app
from service.metrics import Metrics
from service.models.info import ModelInfo
from service.settings import Settings
from tests.api.counting_engine import CountingEngine, model_info


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Stand:
    """An application, its engine and its metrics."""

    app: FastAPI
    engine: CountingEngine
    metrics: Metrics

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client of the application; an exception in the application is a 500, as with a real server."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client

    def counted(self, name: str, **labels: str) -> float:
        """The value of a counter or of a histogram's count."""
        return self.metrics.registry.get_sample_value(f"onestep_{name}", labels) or 0.0


MakeStand = Callable[..., Stand]


@pytest.fixture
def make_stand() -> MakeStand:
    """`make_stand(*infos, **settings)`; by default one class-conditional model called `avatars`."""

    def make(*infos: ModelInfo, **settings: Any) -> Stand:
        models = infos or (model_info(),)
        engine, metrics = CountingEngine(*models), Metrics()
        app = create_app(Settings(**settings), {info.name: info for info in models}, engine, metrics)
        return Stand(app, engine, metrics)

    return make


@pytest.fixture
def stand(make_stand: MakeStand) -> Stand:
    return make_stand()


@pytest.fixture
async def client(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    async with stand.client() as client:
        yield client

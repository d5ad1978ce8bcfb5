"""The application in the test's process, with an engine that computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from service.api.app import create_app
from service.settings import Settings
from tests.api.counting_engine import CountingEngine, model_info


def make_app(**settings: Any) -> FastAPI:
    """An application with one small model called `avatars`."""
    info = model_info()
    return create_app(Settings(**settings), {info.name: info}, CountingEngine(info))


@contextmanager
def client_of_app(app: FastAPI | None = None, **settings: Any) -> Iterator[TestClient]:
    """A client of an application; a fault of the application is its 500, not an exception."""
    app = app or make_app(**settings)
    with TestClient(app, base_url="http://test", raise_server_exceptions=False) as client:
        yield client

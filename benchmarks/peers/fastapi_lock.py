"""Plain FastAPI: the pipeline behind a lock, each request by itself. Workers are uvicorn's.

python -m benchmarks.peers.fastapi_lock
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.peers.shared import Pipeline, Settings, answer

LOCK = threading.Lock()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.pipeline = Pipeline(Settings.from_environment())
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/generate")
def generate(body: dict[str, Any]) -> dict[str, Any]:
    """Runs in one of FastAPI's threads; the lock is there because the pipeline's scheduler keeps state."""
    with LOCK:
        images = app.state.pipeline.together([body])[0]
    return answer(body, images)


if __name__ == "__main__":
    settings = Settings.from_environment()
    place = "benchmarks.peers.fastapi_lock:app"
    uvicorn.run(
        place, host="127.0.0.1", port=settings.port, workers=settings.workers, log_level="warning", access_log=False
    )

"""Ray Serve with `@serve.batch`: images per batch and `batch_wait_timeout_s`; workers are replicas.

python -m benchmarks.peers.ray_server
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from typing import Any

import ray
from PIL import Image
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from benchmarks.peers.shared import Pipeline, Settings, answer

SETTINGS = Settings.from_environment()


def images_of(bodies: list[dict[str, Any]]) -> int:
    """The size of a batch, for `batch_size_fn`."""
    return sum(int(body.get("batch_size", 1)) for body in bodies)


@serve.deployment(
    num_replicas=SETTINGS.workers,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": SETTINGS.threads},
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)
class ConsistencyModel:
    """The handler runs on the replica's event loop, as in Ray's guide: what comes meanwhile makes the next batch."""

    def __init__(self) -> None:
        self.pipeline = Pipeline(SETTINGS)

    @serve.batch(
        max_batch_size=SETTINGS.max_batch, batch_wait_timeout_s=SETTINGS.wait_ms / 1000, batch_size_fn=images_of
    )
    async def together(self, bodies: list[dict[str, Any]]) -> list[list[Image.Image]]:
        return self.pipeline.together(bodies)

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        return answer(body, await self.together(body))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=os.cpu_count(),
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        serve.start(http_options={"host": "127.0.0.1", "port": SETTINGS.port})
        serve.run(ConsistencyModel.bind(), route_prefix="/v1/generate")
        stop.wait()
        serve.shutdown()
        ray.shutdown()

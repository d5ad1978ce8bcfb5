"""LitServe with its batching: `max_batch_size` requests, `batch_timeout` seconds; workers are `workers_per_device`.

python -m benchmarks.peers.litserve_server
"""

from __future__ import annotations

from typing import Any

import litserve
from PIL import Image

from benchmarks.peers.shared import Pipeline, Settings, answer

Made = tuple[dict[str, Any], list[Image.Image]]


class ConsistencyModel(litserve.LitAPI):
    """The hooks of LitServe. Batches stay lists: the pipeline takes a seed and a class for each image."""

    def setup(self, device: str) -> None:
        """Loads the model in each worker."""
        self.pipeline = Pipeline(Settings.from_environment())

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(inputs)

    def predict(self, bodies: list[dict[str, Any]]) -> list[Made]:
        return list(zip(bodies, self.pipeline.together(bodies), strict=True))

    def unbatch(self, output: list[Made]) -> list[Made]:
        return output

    def encode_response(self, output: Made) -> dict[str, Any]:
        return answer(*output)


if __name__ == "__main__":
    settings = Settings.from_environment()
    api = ConsistencyModel(
        max_batch_size=settings.max_batch, batch_timeout=settings.wait_ms / 1000, api_path="/v1/generate"
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=settings.workers, timeout=False)
    server.run(host="127.0.0.1", port=settings.port, generate_client_file=False, log_level="warning", access_log=False)

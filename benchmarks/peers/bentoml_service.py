"""BentoML with adaptive batching: `max_batch_size` images, `max_latency_ms`; workers are the batching service's.

bentoml serve benchmarks.peers.bentoml_service:Generate --host 127.0.0.1 --port 8000

A batchable API takes one list and nothing else, so there are two services, as BentoML's guide has it for several
parameters: one that batches images, and one before it that takes requests and writes PNGs.
"""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np
from _bentoml_impl.client.proxy2 import SessionManager
from PIL import Image
from pydantic import BaseModel

from benchmarks.peers.shared import Pipeline, Settings, Wish, answer, wishes

SETTINGS = Settings.from_environment()

# Between its services BentoML closes the session after every hundred requests, with what is under way in it, which
# then fails with 500 (1.4.30 and later, bentoml/BentoML#5544). That is no limit of its batching: one session is kept.
SessionManager._should_refresh = lambda self: False


class Input(BaseModel):
    """One image of a request: what batches are made of."""

    class_label: int | None
    seed: int
    num_inference_steps: int


@bentoml.service(workers=SETTINGS.workers, traffic={"timeout": 600}, logging={"access": {"enabled": False}})
class ConsistencyModel:
    def __init__(self) -> None:
        self.pipeline = Pipeline(SETTINGS)

    @bentoml.api(batchable=True, max_batch_size=SETTINGS.max_batch, max_latency_ms=int(SETTINGS.wait_ms))
    def together(self, inputs: list[Input]) -> np.ndarray:
        """uint8 `[N, H, W, C]`, one row for each input."""
        asked = [Wish(one.class_label, one.seed, one.num_inference_steps) for one in inputs]
        return np.stack([np.asarray(image) for image in self.pipeline(asked)])


@bentoml.service(traffic={"timeout": 600}, logging={"access": {"enabled": False}})
class Generate:
    model = bentoml.depends(ConsistencyModel)

    @bentoml.api(route="/v1/generate")
    async def generate(
        self,
        seed: int,
        class_labels: int | list[int] | None = None,
        num_inference_steps: int = 1,
        batch_size: int = 1,
        output_format: str = "png",
    ) -> dict[str, Any]:
        body = {
            "seed": seed,
            "class_labels": class_labels,
            "num_inference_steps": num_inference_steps,
            "batch_size": batch_size,
            "output_format": output_format,
        }
        asked = wishes(body)
        inputs = [
            Input(class_label=wish.class_label, seed=wish.seed, num_inference_steps=wish.num_inference_steps)
            for wish in asked
        ]
        pixels = await self.model.to_async.together(inputs)
        return answer(body, [Image.fromarray(one) for one in pixels])

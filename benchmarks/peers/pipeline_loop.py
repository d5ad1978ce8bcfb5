"""The bare pipeline in a loop: no HTTP, no queue, no PNG, and all requests known beforehand. The limit for batching.

Each worker makes the images of the request bodies in FILE (a JSON list) again and again, sorted by steps and in full
batches, as `shared.Pipeline` does; prints JSON. `python -m benchmarks.peers.pipeline_loop FILE SECONDS`
"""

from __future__ import annotations

import json
import random
import sys
import time
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.peers.shared import Pipeline, Settings, Wish, wishes


def batches(bodies: list[dict[str, Any]], most: int) -> list[list[Wish]]:
    """Full batches of images with an equal number of steps; a rest that fills none is left out, unless it is all."""
    asked = [wish for body in bodies for wish in wishes(body)]
    found = []
    for steps in sorted({wish.num_inference_steps for wish in asked}):
        alike = [wish for wish in asked if wish.num_inference_steps == steps]
        full = [alike[first : first + most] for first in range(0, len(alike) - most + 1, most)]
        found += full or [alike]
    random.Random(0).shuffle(found)  # so that stopping anywhere leaves the mix as it is
    return found


def work(settings: Settings, parts: list[list[Wish]], seconds: float, barrier: Any, results: Any) -> None:
    """One worker: waits for the others, then loops for `seconds`. Puts (images, image-steps, seconds)."""
    pipeline = Pipeline(settings)
    barrier.wait()
    images = steps = 0
    began = time.perf_counter()
    for part in cycle(parts):
        pipeline(part)
        images, steps = images + len(part), steps + sum(wish.num_inference_steps for wish in part)
        if (taken := time.perf_counter() - began) >= seconds:
            results.put((images, steps, taken))
            break


def main() -> None:
    settings = Settings.from_environment()
    parts = batches(json.loads(Path(sys.argv[1]).read_text()), settings.max_batch)
    context = get_context("spawn")
    barrier, results = context.Barrier(settings.workers), context.Queue()
    arguments = (settings, parts, float(sys.argv[2]), barrier, results)
    workers = [context.Process(target=work, args=arguments) for _ in range(settings.workers)]
    for worker in workers:
        worker.start()
    rows = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    print(
        json.dumps(
            {
                "images_per_second": sum(images / seconds for images, _, seconds in rows),
                "image_steps_per_second": sum(steps / seconds for _, steps, seconds in rows),
            }
        )
    )


if __name__ == "__main__":
    main()

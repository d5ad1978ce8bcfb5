"""Every server must return the same pictures as Onestep: compared in uint8, at most 1 of 255 apart.

In bfloat16 at most 2 of 255 in 99 % of all values, as is promised for it.
"""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers.processes import Server

MOST, MOST_BFLOAT16 = 1, 2  # of 255
BODIES: tuple[dict[str, Any], ...] = tuple(
    {"class_labels": labels, "seed": seed, "num_inference_steps": steps, "batch_size": count, "output_format": "png"}
    for labels, seed, steps, count in (
        ([1], 11, 1, 1),
        (3, 20, 2, 2),
        ([0, 5, 9, 2], 5, 4, 4),
        ([7, 7, 8], 2**31, 1, 3),
    )
)

Pixels = list[np.ndarray[Any, Any]]


def pictures(server: Server) -> list[Pixels]:
    """The pictures of `BODIES`, asked for at the same time so that they meet in batches."""
    with ThreadPoolExecutor(len(BODIES)) as pool:
        answers = list(pool.map(server.generate, BODIES))
    found = []
    for body, answer in zip(BODIES, answers, strict=True):
        seeds = [image["seed"] for image in answer["images"]]
        if seeds != [body["seed"] + i for i in range(body["batch_size"])]:
            raise SystemExit(f"{server.process.args!r} answered seeds {seeds} to {body}")
        files = [base64.b64decode(image["b64_json"]) for image in answer["images"]]
        found.append([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return found


def check(name: str, found: list[Pixels], expected: list[Pixels], *, bfloat16: bool = False) -> int:
    """The largest difference of two pixels, 0 to 255; with `bfloat16`, of 99 % of each picture's.

    Raises SystemExit when it is more than may be.
    """
    share, most = (0.99, MOST_BFLOAT16) if bfloat16 else (1.0, MOST)
    worst = 0
    for body, some, same in zip(BODIES, found, expected, strict=True):
        for mine, theirs in zip(some, same, strict=True):
            if mine.shape != theirs.shape:
                raise SystemExit(f"{name}: {mine.shape} instead of {theirs.shape} for {body}")
            far = int(np.quantile(np.abs(mine.astype(int) - theirs.astype(int)), share))
            if far > most:
                raise SystemExit(f"{name} does not return the same pictures: {far}/255 apart for {body}")
            worst = max(worst, far)
    return worst

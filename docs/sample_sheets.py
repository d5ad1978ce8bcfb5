"""Makes the README's three sheets with the bundled model: `python docs/sample_sheets.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from service.engine.offline import OfflineEngine
from service.engine.protocol import EngineConfig
from service.engine.request import Sample
from service.models.places import load_infos

OUT = Path(__file__).parent / "images"
ROWS, COLUMNS = 4, 5
SHEETS = {"one-step": 1, "two-steps": 2, "four-steps": 4}


def main() -> None:
    """Draws and writes them."""
    info = next(iter(load_infos("bundled").values()))
    count, side = ROWS * COLUMNS, info.image_size
    for name, steps in SHEETS.items():
        sigmas = info.schedule.sigmas(info.schedule.evenly_spaced(steps))
        samples = [
            Sample(id=i, request=i, client="", model=info.name, seed=i, class_label=i % info.num_classes, sigmas=sigmas)
            for i in range(count)
        ]
        with tempfile.TemporaryDirectory() as cache:
            results = dict(OfflineEngine(info, EngineConfig("cpu", "float32", 2, 20, 30.0, True, cache)).run(samples))
        pixels = np.stack([np.frombuffer(results[i].pixels, np.uint8) for i in range(count)])
        sheet = pixels.reshape(ROWS, COLUMNS, side, side, 3).swapaxes(1, 2).reshape(ROWS * side, COLUMNS * side, 3)
        Image.fromarray(sheet).save(OUT / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

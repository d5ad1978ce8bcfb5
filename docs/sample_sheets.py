"""Makes the README's sheets with the bundled models: `python docs/sample_sheets.py`."""

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
SHEETS = {
    "one-step": ("avatars-32", 1),
    "two-steps": ("avatars-32", 2),
    "four-steps": ("avatars-32", 4),
    "one-step-64": ("avatars-64", 1),
}


def main() -> None:
    """Draws and writes them."""
    count = ROWS * COLUMNS
    for name, (model, steps) in SHEETS.items():
        info = load_infos(model)[model]
        side = info.image_size
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

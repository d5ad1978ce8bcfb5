"""Makes the picture of docs/08-edits.md with the bundled model: `python docs/edit_sheets.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from service.api.encoding import Picture
from service.diffusion.operators import Edit
from service.diffusion.operators.colorize import LUMA, Colorize
from service.diffusion.operators.denoise import Denoise
from service.diffusion.operators.inpaint import Inpaint
from service.diffusion.operators.interpolate import Interpolate
from service.diffusion.operators.stroke import Stroke, start_index
from service.diffusion.operators.super_resolution import SuperResolution
from service.engine.offline import OfflineEngine
from service.engine.protocol import EngineConfig
from service.engine.request import Sample
from service.models.places import load_infos

OUT = Path(__file__).parent / "images" / "edits.png"
ZOOM, GAP, MADE = 3, 4, 6
LABELS = (5, 8, 7)  # micah, pixel-art, personas
FACTOR = 4

INFO = next(iter(load_infos("bundled").values()))
SIDE = INFO.image_size
SCHEDULE = INFO.schedule
EVERY_STEP = SCHEDULE.sigmas(SCHEDULE.evenly_spaced(SCHEDULE.num_train_timesteps))
FOUR_STEPS = SCHEDULE.sigmas(SCHEDULE.evenly_spaced(4))
CONFIG = EngineConfig("cpu", "float32", 2, 16, 60.0, True, str(Path(tempfile.gettempdir()) / "onestep-sheets"))
ENGINE = OfflineEngine(INFO, CONFIG)

Row = list[Image.Image]  # what was given, then what was made


def sample(seed: int, label: int, sigmas: tuple[float, ...], edit: Edit | None = None) -> Sample:
    """One image of the bundled model."""
    return Sample(id=0, request=0, client="", model=INFO.name, seed=seed, class_label=label, sigmas=sigmas, edit=edit)


def run(samples: list[Sample]) -> list[Image.Image]:
    """The pictures of some samples, in order."""
    results = dict(ENGINE.run(samples))
    return [Picture(results[i].pixels, SIDE, SIDE, INFO.channels).image().copy() for i in range(len(samples))]


def sheet(groups: dict[str, list[Row]]) -> Image.Image:
    """Groups below each other, each under its name; a gap divides what was given from what was made."""
    cell, caption = SIDE * ZOOM + GAP, 22
    rows = sum(len(group) for group in groups.values())
    image = Image.new("RGB", (cell * (MADE + 1) + 3 * GAP, rows * cell + len(groups) * caption), "white")
    draw, top = ImageDraw.Draw(image), 0
    for name, group in groups.items():
        draw.text((GAP, top + 5), name, "black", font_size=13)
        top += caption
        for row in group:
            for x, picture in enumerate(row):
                large = picture.convert("RGB").resize((SIDE * ZOOM, SIDE * ZOOM), Image.Resampling.NEAREST)
                image.paste(large, (GAP + x * cell + (2 * GAP if x else 0), top))
            top += cell
    return image


def before_and_after(given: list[Image.Image], sigmas: tuple[float, ...], edits: list[Edit]) -> list[Row]:
    """Each picture with what an edit makes of it for several seeds."""
    pairs = zip(LABELS, edits, strict=True)
    made = run([sample(seed, label, sigmas, edit) for label, edit in pairs for seed in range(MADE)])
    return [[picture, *made[i * MADE : (i + 1) * MADE]] for i, picture in enumerate(given)]


def painting(number: int) -> Image.Image:
    """A face in a few strokes."""
    image = Image.new("RGB", (SIDE * 4, SIDE * 4), [(160, 200, 240), (250, 220, 160), (200, 230, 190)][number])
    draw, s = ImageDraw.Draw(image), SIDE * 4 / 32
    skin = [(240, 190, 150), (150, 100, 70), (250, 215, 180)][number]
    hair = [(80, 50, 30), (30, 30, 40), (220, 160, 60)][number]
    draw.rectangle((7 * s, 24 * s, 25 * s, 32 * s), [(200, 60, 60), (70, 110, 200), (90, 90, 90)][number])
    draw.ellipse((8 * s, 5 * s, 24 * s, 27 * s), skin)
    draw.pieslice((7 * s, 3 * s, 25 * s, 21 * s), 180, 360, hair)
    draw.ellipse((12 * s, 14 * s, 14 * s, 16 * s), (20, 20, 20))
    draw.ellipse((18 * s, 14 * s, 20 * s, 16 * s), (20, 20, 20))
    draw.line((13 * s, 21 * s, 19 * s, 21 * s), (120, 40, 40), int(s))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def inpainted(pictures: list[Image.Image]) -> list[Row]:
    """The lower half, made anew; it is shown white."""
    mask = np.zeros((SIDE, SIDE, 1), np.uint8)
    mask[SIDE // 2 :] = 1
    holes = [Image.fromarray(np.where(mask, np.uint8(255), np.asarray(picture))) for picture in pictures]
    return before_and_after(holes, EVERY_STEP, [Inpaint(one.tobytes(), mask.tobytes()) for one in pictures])


def colorized(pictures: list[Image.Image]) -> list[Row]:
    """Colours for their luma."""
    luma = [np.asarray(picture) @ (np.array(LUMA) / sum(LUMA)) for picture in pictures]
    grey = [Image.fromarray(one.round().astype(np.uint8)).convert("RGB") for one in luma]
    return before_and_after(grey, EVERY_STEP, [Colorize(one.tobytes()) for one in grey])


def enlarged(pictures: list[Image.Image]) -> list[Row]:
    """Detail for their blocks."""
    small = [picture.resize((SIDE // FACTOR, SIDE // FACTOR), Image.Resampling.BOX) for picture in pictures]
    large = [picture.resize((SIDE, SIDE), Image.Resampling.NEAREST) for picture in small]
    return before_and_after(large, EVERY_STEP, [SuperResolution(one.tobytes(), FACTOR) for one in large])


def painted() -> list[Row]:
    """Pictures from paintings, in the four steps of the default strength."""
    paintings = [painting(i) for i in range(len(LABELS))]
    start = start_index(0.6, SCHEDULE)
    sigmas = tuple(SCHEDULE.sigma_at(start + i * ((SCHEDULE.num_train_timesteps - start) // 4)) for i in range(4))
    return before_and_after(paintings, sigmas, [Stroke(one.tobytes()) for one in paintings])


def denoised(pictures: list[Image.Image]) -> list[Row]:
    """Noise of three levels, each before its one pass."""
    rows = []
    for picture, label in zip(pictures, LABELS, strict=True):
        draw = np.random.default_rng(label).standard_normal((3, SIDE, SIDE), np.float32)
        clean = np.asarray(picture).transpose(2, 0, 1) / np.float32(127.5) - 1
        row = [picture]
        for sigma in (0.1, 0.3, 1.0):
            noisy = (clean + sigma * draw).astype(np.float32)
            shown = ((noisy.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0)
            row.append(Image.fromarray(np.ascontiguousarray(shown)))
            row += run([sample(0, label, (sigma,), Denoise(noisy.tobytes(), noisy=True))])
        rows.append(row)
    return rows


def interpolated() -> list[Row]:
    """The way from one seed to another."""
    rows = []
    for i, label in enumerate(LABELS):
        edits = [Interpolate(200 + i, frame / MADE) for frame in range(MADE + 1)]
        rows.append(run([sample(100 + i, label, SCHEDULE.sigmas([22, 0]), edit) for edit in edits]))
    return rows


def main() -> None:
    """Makes all and writes them into one picture."""
    pictures = run([sample(100 + i, label, FOUR_STEPS) for i, label in enumerate(LABELS)])
    groups = {
        "inpaint: the lower half is repainted": inpainted(pictures),
        "colorize: the luma is kept": colorized(pictures),
        "super-resolution: the means of 4 x 4 blocks are kept": enlarged(pictures),
        "stroke: paintings, strength 0.6": painted(),
        "denoise: sigma 0.1, 0.3, 1, each before and after one pass": denoised(pictures),
        "interpolate: from one seed to another, in two steps": interpolated(),
    }
    sheet(groups).save(OUT, optimize=True)


if __name__ == "__main__":
    main()

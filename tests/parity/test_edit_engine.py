"""Edits in the engine's batches against the plain loop, image by image."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from service.diffusion.operators import Edit, edit_name
from service.diffusion.operators.colorize import Colorize
from service.diffusion.operators.denoise import Denoise
from service.diffusion.operators.inpaint import Inpaint
from service.diffusion.operators.interpolate import Interpolate
from service.diffusion.operators.stroke import Stroke
from service.diffusion.operators.super_resolution import SuperResolution
from service.diffusion.sampling import sample_image, to_unit_range
from service.engine.loop import EngineLoop
from service.engine.offline import OfflineEngine
from service.engine.protocol import EngineConfig, Finished, FromEngine, StepStarted
from service.engine.request import Sample
from service.engine.runner import ModelRunner
from service.engine.worker import prepare_runner
from service.models.info import ModelInfo
from service.models.loader import load_unet
from service.models.places import load_infos
from tests.tiny import tiny_model

TOLERANCE = 1e-5
KINDS = ("inpaint", "colorize", "super-resolution", "stroke", "denoise", "noisy", "interpolate", "none")


def random_edit(kind: str, info: ModelInfo, rng: random.Random) -> Edit | None:
    draw = np.random.default_rng(rng.randrange(2**32))
    channels, side, _ = info.latent_shape
    image = draw.choice([0, 30, 128, 220, 255], (side, side, channels)).astype(np.uint8).tobytes()
    edits: dict[str, Edit] = {
        "inpaint": Inpaint(image, draw.integers(0, 2, (side, side), np.uint8).tobytes()),
        "colorize": Colorize(image),
        "super-resolution": SuperResolution(image, rng.choice([2, 4, side])),
        "stroke": Stroke(image),
        "denoise": Denoise(image),
        "noisy": Denoise(draw.standard_normal(info.latent_shape, np.float32).tobytes(), noisy=True),
        "interpolate": Interpolate(rng.randrange(2**53), rng.random()),
    }
    return edits.get(kind)


def random_sample(kind: str, info: ModelInfo, rng: random.Random) -> Sample:
    timesteps = sorted(rng.sample(range(40), rng.choice([1, 2, 5, 12])), reverse=True)
    one_pass = kind in ("denoise", "noisy")
    return Sample(
        id=0,
        request=0,
        client="",
        model=info.name,
        seed=rng.randrange(2**53),
        class_label=None if info.num_classes is None else rng.randrange(info.num_classes),
        sigmas=(rng.uniform(0.002, 80),) if one_pass else info.schedule.sigmas(timesteps),
        pixels="float32",
        edit=random_edit(kind, info, rng),
    )


@pytest.mark.parametrize("layout", ["plain", "lsun_like"])
def test_edits_mixed_with_generations_equal_the_plain_loop(layout: str, tmp_path: Path) -> None:
    """Every image of every edit, batched with all others, is the loop's to 1e-5."""
    folder = tiny_model(tmp_path / "model", layout, sample_size=16)  # type: ignore[arg-type]
    info = next(iter(load_infos(str(folder)).values()))
    rng = random.Random(layout)
    samples = [random_sample(kind, info, rng) for _ in range(8) for kind in KINDS]
    config = EngineConfig("cpu", "float32", 1, 16, 1.0, True, str(tmp_path / "cache"))

    results = dict(OfflineEngine(info, config).run(samples))

    unet = load_unet(info)
    with torch.inference_mode():
        for i, sample in enumerate(samples):
            image = sample_image(
                lambda x, time, labels: unet(x, time, class_labels=labels, return_dict=False)[0],
                info.schedule,
                sample.sigmas,
                seed=sample.seed,
                shape=info.latent_shape,
                class_label=sample.class_label,
                edit=sample.edit,
            )
            expected = to_unit_range(image)[0].permute(1, 2, 0).numpy()
            actual = np.frombuffer(results[i].pixels, np.float32).reshape(expected.shape)
            name = "none" if sample.edit is None else edit_name(sample.edit)
            assert np.abs(actual - expected).max() <= TOLERANCE, name


def rows_of_forwards(samples: list[Sample], info: ModelInfo, cache: Path) -> list[int]:
    """How many rows each forward held when all samples are there from the start and 16 fit, 4 in each lane."""
    config = EngineConfig("cpu", "float32", 4, 16, 30.0, True, str(cache))
    runner, status = prepare_runner(info, config)
    runner = ModelRunner(info, runner.network, [size for size in status.batch_sizes if size.size == 16], 30.0)
    events: list[FromEngine] = []
    loop = EngineLoop([runner], lambda *messages: events.extend(messages))
    for i, sample in enumerate(samples):
        loop.submit([msgspec.structs.replace(sample, id=i, request=i, request_steps=len(sample.sigmas))])
    with torch.inference_mode():
        while loop.step():
            pass
    assert len(samples) == sum(isinstance(event, Finished) for event in events)
    return [len(event.samples) for event in events if isinstance(event, StepStarted)]


def test_edits_fill_forwards_as_generations_do(tmp_path: Path) -> None:
    """At saturation the forwards of mixed samples hold as many rows as those of generations with the same steps."""
    info = next(iter(load_infos(str(tiny_model(tmp_path / "model", "plain"))).values()))
    rng = random.Random(0)
    mixed = [random_sample(rng.choice(KINDS), info, rng) for _ in range(240)]
    plain = [msgspec.structs.replace(sample, edit=None) for sample in mixed]
    assert sum(sample.edit is not None for sample in mixed) > 120
    most = {len(sample.sigmas) for sample in mixed}
    for samples in (mixed, plain):
        rows = rows_of_forwards(samples, info, tmp_path)
        assert sum(rows) == sum(len(sample.sigmas) for sample in samples)
        # every forward is full until fewer than 16 samples are left, of which some are in other lanes
        end = len(rows)
        while sum(rows[end:]) < 16 * max(most):
            end -= 1
        assert sum(rows[:end]) > sum(rows) / 2
        assert set(rows[:end]) == {4}

"""The engine's pictures against `ConsistencyModelPipeline`, all cases of a model mixed in the engine's batches."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from diffusers.models.unets.unet_2d import UNet2DModel

from service.diffusion.denoiser import Network
from service.diffusion.sampling import sample_image, to_unit_range
from service.engine.forward import has_units
from service.engine.offline import OfflineEngine
from service.engine.protocol import EngineConfig
from service.engine.request import Sample
from service.models.info import ModelInfo
from service.models.loader import load_unet
from service.models.places import BUNDLED, load_infos
from tests.tiny import tiny_model

TOLERANCE = 1e-5  # the promise, on images in [0, 1] before quantisation, for up to four steps

MODELS = {
    "class-conditional, 40 train timesteps": {"layout": "imagenet_like"},
    "class-conditional, 151 train timesteps": {"layout": "plain", "num_train_timesteps": 151},
    "class-conditional, 201 train timesteps": {"layout": "imagenet_like", "num_train_timesteps": 201, "seed": 1},
    "unconditional, 40 train timesteps": {"layout": "lsun_like"},
    "unconditional, 151 train timesteps": {"layout": "lsun_like", "num_train_timesteps": 151, "sample_size": 16},
    "other sigmas, unclipped": {
        "layout": "plain",
        "scheduler": {"sigma_min": 0.01, "sigma_max": 40.0, "clip_denoised": False, "s_noise": 0.9},
    },
}
CASES_PER_MODEL = 40
QUICK = {"class-conditional, 40 train timesteps", "unconditional, 151 train timesteps", "other sigmas, unclipped"}


@dataclass
class Case:
    """One pipeline call: a batch of images with common steps."""

    seeds: list[int]
    labels: list[int] | None
    steps: int | None
    timesteps: list[int] | None
    latents: np.ndarray | None

    def sigmas(self, info: ModelInfo) -> tuple[float, ...]:
        timesteps = self.timesteps if self.timesteps is not None else info.schedule.evenly_spaced(self.steps or 1)
        return info.schedule.sigmas(timesteps)


def random_cases(info: ModelInfo, rng: random.Random) -> list[Case]:
    """Cases that cover 1 to 40 steps, explicit timesteps, given latents, per-image seeds."""
    cases = []
    for i in range(CASES_PER_MODEL):
        size = rng.randint(1, 4)
        steps = 40 if i == 0 else rng.choice([1, 1, 2, 3, 4, 7, 13])
        chosen = sorted(rng.sample(range(info.schedule.num_train_timesteps), min(steps, 6)), reverse=True)
        explicit = rng.random() < 0.4
        latents = None
        if rng.random() < 0.3:
            shape = (size, *info.latent_shape)
            latents = np.random.default_rng(i).standard_normal(shape, dtype=np.float32)
        cases.append(
            Case(
                seeds=[rng.randrange(2**53) for _ in range(size)],
                labels=[rng.randrange(info.num_classes) for _ in range(size)] if info.num_classes else None,
                steps=None if explicit else steps,
                timesteps=chosen if explicit else None,
                latents=latents,
            )
        )
    return cases


def pipeline_images(pipeline: ConsistencyModelPipeline, case: Case) -> np.ndarray:
    """What diffusers makes: float32 `[N, H, W, C]` in [0, 1]."""
    images: np.ndarray = pipeline(
        batch_size=len(case.seeds),
        class_labels=case.labels,
        num_inference_steps=case.steps,
        timesteps=case.timesteps,
        generator=[torch.Generator().manual_seed(seed) for seed in case.seeds],
        latents=None if case.latents is None else torch.from_numpy(case.latents),
        output_type="np",
    ).images
    return images


def samples_of(case: Case, info: ModelInfo) -> list[Sample]:
    """The same as samples for the engine."""
    return [
        Sample(
            id=0,
            request=0,
            client="",
            model=info.name,
            seed=seed,
            class_label=None if case.labels is None else case.labels[i],
            sigmas=case.sigmas(info),
            pixels="float32",
            latents=None if case.latents is None else case.latents[i].tobytes(),
        )
        for i, seed in enumerate(case.seeds)
    ]


def load(folder: Path) -> tuple[ModelInfo, ConsistencyModelPipeline]:
    """A model folder as the service and as diffusers see it."""
    info = next(iter(load_infos(str(folder)).values()))
    pipeline = ConsistencyModelPipeline(
        unet=UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False),
        scheduler=CMStochasticIterativeScheduler.from_pretrained(folder, subfolder="scheduler"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return info, pipeline


@pytest.mark.parametrize("name", ["avatars-32", pytest.param("avatars-64", marks=pytest.mark.slow)])
def test_bundled_models_equal_the_pipeline(name: str, tmp_path: Path) -> None:
    """To 1e-5 for up to four steps; over many, where rounding adds up in either, to 1/255 after quantisation."""
    info, pipeline = load(BUNDLED / name)
    cases = [Case([7, 8, 9, 10], [0, 3, 6, 9], steps, None, None) for steps in (1, 2, 4, 10, 40)]
    samples = [sample for case in cases for sample in samples_of(case, info)]
    config = EngineConfig("cpu", "float32", 1, 16, 30.0, True, str(tmp_path / "cache"))

    results = dict(OfflineEngine(info, config).run(samples))

    expected = np.stack([pipeline_images(pipeline, case) for case in cases])
    actual = np.stack([np.frombuffer(results[i].pixels, np.float32) for i in range(len(samples))])
    actual = actual.reshape(expected.shape)
    assert np.abs(actual - expected)[:3].max() <= TOLERANCE
    assert np.abs(np.round(255 * actual) - np.round(255 * expected)).max() <= 1


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_mixed_batches_equal_the_pipeline(name: str, tmp_path: Path) -> None:
    """Every image of every case, run together with all others, is the pipeline's to 1e-5."""
    info, pipeline = load(tiny_model(tmp_path / "model", **MODELS[name]))
    cases = random_cases(info, random.Random(name))
    samples = [sample for case in cases for sample in samples_of(case, info)]
    config = EngineConfig("cpu", "float32", 1, 16, 1.0, True, str(tmp_path / "cache"))

    results = dict(OfflineEngine(info, config).run(samples))

    expected = np.concatenate([pipeline_images(pipeline, case) for case in cases])
    actual = np.stack([np.frombuffer(results[i].pixels, np.float32) for i in range(len(samples))])
    assert len(samples) >= CASES_PER_MODEL
    assert expected.reshape(len(samples), -1).std(axis=1).min() > 0.02, "flat pictures would prove nothing"
    assert np.abs(actual - expected.reshape(actual.shape)).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["class-conditional, 40 train timesteps", "unconditional, 151 train timesteps"])
def test_compiled_mixed_batches_equal_the_pipeline(name: str, tmp_path: Path) -> None:
    """The network compiled for this CPU keeps the promise too: 1e-5 from the pipeline."""
    info, pipeline = load(tiny_model(tmp_path / "model", **MODELS[name]))
    cases = random_cases(info, random.Random(name))
    samples = [sample for case in cases for sample in samples_of(case, info)]
    config = EngineConfig("cpu", "float32", 2, 16, 1.0, True, str(tmp_path / "cache"), compile=True)

    results = dict(OfflineEngine(info, config).run(samples))

    expected = np.concatenate([pipeline_images(pipeline, case) for case in cases])
    actual = np.stack([np.frombuffer(results[i].pixels, np.float32) for i in range(len(samples))])
    assert np.abs(actual - expected.reshape(actual.shape)).max() <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "class-conditional, 40 train timesteps",
        pytest.param("unconditional, 151 train timesteps", marks=pytest.mark.slow),
    ],
)
def test_offline_loop_equals_the_pipeline(name: str, tmp_path: Path) -> None:
    """The plain loop, the oracle of everything else, is the pipeline's to 1e-5."""
    info, pipeline = load(tiny_model(tmp_path / "model", **MODELS[name]))
    network = stock_network(info)
    for case in random_cases(info, random.Random(name))[:12]:
        expected = pipeline_images(pipeline, case)
        with torch.inference_mode():
            actual = torch.cat(
                [
                    sample_image(
                        network,
                        info.schedule,
                        case.sigmas(info),
                        seed=seed,
                        shape=info.latent_shape,
                        class_label=None if case.labels is None else case.labels[i],
                        latents=None if case.latents is None else torch.from_numpy(case.latents[i : i + 1]),
                    )
                    for i, seed in enumerate(case.seeds)
                ]
            )
        assert np.abs(to_unit_range(actual).permute(0, 2, 3, 1).numpy() - expected).max() <= TOLERANCE


def stock_network(info: ModelInfo) -> Network:
    """diffusers' own UNet as the denoiser's network."""
    unet = load_unet(info)
    return lambda x, time, labels: unet(x, time, class_labels=labels, return_dict=False)[0]


def bundled_off_by(dtype: str, tmp_path: Path, compiled: bool = False) -> np.ndarray:
    """How far each value of the bundled model's pictures, one and two steps, is from diffusers' float32, in 1/255."""
    info = next(iter(load_infos("bundled").values()))
    _, pipeline = load(info.path)
    config = EngineConfig("cpu", dtype, 1, 8, 30.0, True, str(tmp_path / "cache"), compiled)
    cases = [
        Case([1, 2, 3], [0, 5, 9], 1, None, None),
        Case([42, 2**53 - 1], [9, 4], None, [22, 0], None),
    ]
    samples = [sample for case in cases for sample in samples_of(case, info)]
    for sample in samples:
        sample.pixels = "uint8"

    results = dict(OfflineEngine(info, config).run(samples))

    expected = np.concatenate([pipeline_images(pipeline, case) for case in cases])
    expected = (expected * 255).round().astype(np.int16).reshape(len(samples), -1)
    actual = np.stack([np.frombuffer(results[i].pixels, np.uint8) for i in range(len(samples))]).astype(np.int16)
    return np.abs(actual - expected)


def test_bundled_model_equals_the_pipeline_in_uint8(tmp_path: Path) -> None:
    """On the bundled model one and two steps differ by at most 1/255 after quantisation."""
    assert bundled_off_by("float32", tmp_path).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bundled_model_in_bfloat16_is_near(tmp_path: Path, compiled: bool) -> None:
    """Within 2/255 of float32 for 99 % of values."""
    if compiled and not has_units(torch.bfloat16):
        pytest.skip("a compiled network in bfloat16 is for processors with units for it")
    assert np.quantile(bundled_off_by("bfloat16", tmp_path, compiled), 0.99) <= 2

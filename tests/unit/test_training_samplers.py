"""The samplers of the evaluation, against diffusers and against a case with a known answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from diffusers import ConsistencyModelPipeline, UNet2DModel
from torch import Tensor

from training.export import scheduler
from training.network import SIGMA_MIN, build_unet, denoiser, silence, silent_time_columns
from training.recipe import PRESETS
from training.sampling import consistency_sample, heun_sample, second_steps, to_uint8


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    torch.manual_seed(0)
    network = build_unet(PRESETS["smoke"].network)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return network.eval()


@pytest.mark.parametrize("timesteps", [[0], [22, 0], [30, 20, 10, 0]])
def test_consistency_samples_are_those_of_diffusers(unet: UNet2DModel, timesteps: Sequence[int]) -> None:
    """Equal seeds, classes and timesteps give the pipeline's picture."""
    pipeline = ConsistencyModelPipeline(unet=unet, scheduler=scheduler())
    pipeline.set_progress_bar_config(disable=True)
    labels, seeds = torch.tensor([3, 9, 0]), [5, 6, 7]
    expected = pipeline(
        batch_size=3,
        num_inference_steps=None,
        timesteps=list(timesteps),
        class_labels=labels,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    images = consistency_sample(denoiser(unet), labels, seeds, 16, timesteps)
    actual = (images / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    assert float(np.abs(expected - actual).max()) < 1e-5


def test_searched_second_steps_are_those_of_the_plain_sampler(unet: UNet2DModel) -> None:
    """Taking the first step once for all indices changes no picture."""
    labels, seeds = torch.tensor([3, 9]), [5, 6]
    for index, images in second_steps(denoiser(unet), labels, seeds, 16, [18, 26]).items():
        plain = consistency_sample(denoiser(unet), labels, seeds, 16, [index, 0])
        torch.testing.assert_close(images, plain, rtol=0, atol=1e-6)


def test_a_fresh_network_is_the_identity_at_sigma_min(unet: UNet2DModel) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = denoiser(unet)(x, torch.full((2,), SIGMA_MIN), torch.tensor([0, 1]))
    torch.testing.assert_close(found, x)


def test_heun_gives_the_data_of_a_known_denoiser() -> None:
    """With many steps the ideal denoiser of N(0, 0.2^2) leads from pure noise to samples of that spread."""

    def ideal(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        square = sigma.view(-1, 1, 1, 1) ** 2
        return x * 0.04 / (0.04 + square)

    images = heun_sample(ideal, torch.zeros(40, dtype=torch.long), range(40), 16, steps=100)
    assert float(images.std()) == pytest.approx(0.2, rel=0.02)


def test_heun_leaves_no_noise_of_a_network_that_knows_the_picture() -> None:
    """One that leaves everything as it is at sigma_min, as consistency models are made."""
    picture = torch.linspace(-0.9, 0.9, 3 * 16 * 16).view(1, 3, 16, 16)

    def perfect(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return torch.where(sigma.view(-1, 1, 1, 1) > SIGMA_MIN, picture, x)

    images = heun_sample(perfect, torch.zeros(2, dtype=torch.long), [1, 2], 16)
    torch.testing.assert_close(images, picture.expand(2, -1, -1, -1), rtol=0, atol=1e-5)


def test_pixels_are_rounded_to_the_nearest_and_clipped() -> None:
    """Of 255: 0.4 is 0, 1.6 is 2, 2.4 is 2, and what is out of range is cut off."""
    values = torch.tensor([0.4, 1.6, 2.4, -9.0, 999.0]) / 255 * 2 - 1
    assert to_uint8(values.view(1, 1, 1, 5)).flatten().tolist() == [0, 2, 2, 0, 255]


def test_short_periods_of_time_are_silenced() -> None:
    """With 16 frequencies and a cutoff of 0.5 in ln sigma the six fastest of each kind have no weight."""
    network = build_unet(PRESETS["32"].network)
    columns = silent_time_columns(network, 0.5)
    assert columns.nonzero().flatten().tolist() == [*range(6), *range(16, 22)]
    silence(network, columns)
    weight = network.time_embedding.linear_1.weight.detach()
    assert float(weight[:, columns].abs().max()) == 0
    assert float(weight[:, ~columns].abs().mean()) > 0

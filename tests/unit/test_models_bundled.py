"""The models that come with the service: what they are, and that the larger one draws what the smaller one does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from service.diffusion.schedule import NoiseSchedule
from service.models.loader import load_unet
from service.models.places import BUNDLED, bundled_names, load_infos
from training.network import SIGMA_MAX, denoiser


@pytest.mark.parametrize(("name", "size"), [("avatars-32", 32), ("avatars-64", 64)])
def test_bundled_models_are_read(name: str, size: int) -> None:
    assert name in bundled_names()
    info = load_infos(name)[name]
    assert info.latent_shape == (3, size, size)
    assert info.class_conditional
    assert [info.classes[0].slug, info.classes[9].name] == ["adventurer", "thumbs"]
    assert NoiseSchedule() == info.schedule
    assert info.license == "cc-by-4.0"
    assert info.revision.startswith("sha256:")
    assert len(info.revision) == 7 + 64


def test_their_weights_are_no_larger_than_a_checkout_should_be() -> None:
    """40 MB are asked for; float16, and nothing but safetensors."""
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}


def test_the_larger_one_draws_what_the_smaller_one_does() -> None:
    """From every second pixel of the same noise: halved, a picture is far nearer to its own than to other ones."""
    x = SIGMA_MAX * torch.randn(20, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    sigma, labels = torch.full((20,), SIGMA_MAX), torch.arange(10).repeat(2)

    def drawn(name: str, noise: Tensor) -> Tensor:
        denoise = denoiser(load_unet(load_infos(name)[name]))
        with torch.no_grad():
            return denoise(noise, sigma, labels).clamp(-1, 1)

    larger = functional.avg_pool2d(drawn("avatars-64", x), 2)
    smaller = drawn("avatars-32", x[:, :, ::2, ::2].contiguous())
    own = (larger - smaller).abs().mean()
    others = (larger.roll(10, 0) - smaller).abs().mean()  # another picture of the same style
    assert own < 0.4 * others

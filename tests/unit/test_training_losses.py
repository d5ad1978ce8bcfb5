"""The recipe's noise levels and losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.distiller import matching_direction
from training.losses import consistency_loss, denoising_loss, draw_sigma, nearer_sigma, pseudo_huber, stage_of
from training.network import SIGMA_MAX, SIGMA_MIN, boundary_scalings
from training.recipe import PRESETS, PhaseSettings

PHASE = PhaseSettings(images=1000, batch=8, learning_rate=1e-3, warmup=1, ema=0.9, p_mean=-1.1, p_std=2.0, stages=4)
LEVELS = torch.logspace(-2.6, 1.9, 50)


def pictures(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1
    return x0, torch.zeros(count, dtype=torch.long), torch.randn(x0.shape, generator=generator)


def test_scalings_are_the_identity_at_sigma_min() -> None:
    """c_skip is 1 and c_out is 0 there."""
    c_skip, c_out, _ = boundary_scalings(torch.tensor([SIGMA_MIN]))
    assert (float(c_skip), float(c_out)) == (1.0, 0.0)


def test_noise_levels_follow_the_lognormal_and_stay_in_range() -> None:
    """The median is exp(p_mean), and the tails end at sigma_min and sigma_max."""
    sigma = draw_sigma(100_000, PHASE, torch.Generator().manual_seed(0))
    assert float(sigma.log().median()) == pytest.approx(-1.1, abs=0.03)
    assert (float(sigma.min()), float(sigma.max())) == (pytest.approx(SIGMA_MIN), pytest.approx(SIGMA_MAX))


@pytest.mark.parametrize("stage", range(4))
def test_the_nearer_level_is_below_and_in_range(stage: int) -> None:
    """sigma_min <= r < t."""
    r = nearer_sigma(LEVELS, stage, 4.0)
    assert bool((r < LEVELS).all())
    assert float(r.min()) >= SIGMA_MIN - 1e-9


def test_each_stage_brings_the_levels_q_times_closer() -> None:
    """At high noise t - r is t / 4, t / 16, t / 64, t / 256."""
    t = torch.tensor([80.0])
    gaps = [float(1 - nearer_sigma(t, stage, 4.0) / t) for stage in range(4)]
    assert gaps == pytest.approx([4.0**-k for k in range(1, 5)], rel=1e-3)


def test_low_noise_has_the_clean_image_as_target_in_the_first_stage() -> None:
    """r is sigma_min up to sigma 0.5, and above it somewhere."""
    r = nearer_sigma(LEVELS, 0, 4.0)
    assert bool((r[LEVELS < 0.5] == torch.tensor(SIGMA_MIN)).all())
    assert bool((r[LEVELS > 0.6] > SIGMA_MIN).all())


def test_stages_share_the_phase_equally() -> None:
    """Four stages of 1000 images change at 250, 500 and 750, and the last one stays."""
    assert [stage_of(n, PHASE) for n in (0, 249, 250, 500, 750, 999, 1000)] == [0, 0, 1, 2, 3, 3, 3]


def test_pseudo_huber_is_the_norm_for_large_differences_and_zero_for_none() -> None:
    """Far beyond c it is the Euclidean norm less c."""
    rows = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 2.0)])
    c = 0.00054 * 192**0.5
    assert pseudo_huber(rows).tolist() == pytest.approx([0.0, 2 * 192**0.5 - c], abs=1e-4)


def test_denoising_loss_is_one_for_an_estimate_that_misses_by_the_weight() -> None:
    """An error of sigma sigma_data / sqrt(sigma^2 + sigma_data^2) at every value weighs 1 at every level."""
    x0, _, _ = pictures(50)
    error = LEVELS * 0.5 / (LEVELS**2 + 0.25).sqrt()
    loss = denoising_loss(x0 + error.view(-1, 1, 1, 1), x0, LEVELS)
    assert loss.tolist() == pytest.approx([1.0] * 50, rel=1e-4)


def test_consistency_loss_vanishes_for_a_consistent_network() -> None:
    """A function that gives the clean image at every level has no loss."""
    x0, _, noise = pictures(50)

    def perfect(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        where = c.tolist()
        return x0[where]

    loss = consistency_loss(perfect, x0, torch.arange(50), LEVELS, nearer_sigma(LEVELS, 2, 4.0), noise)
    assert float(loss.abs().max()) < 1e-4


def test_both_sides_see_the_same_noise_and_only_the_noisier_learns() -> None:
    """The network is asked for x0 + t n with gradient and for x0 + r n without."""
    x0, labels, noise = pictures(2)
    t, r = torch.tensor([2.0, 40.0]), torch.tensor([1.0, 30.0])
    asked: list[tuple[Tensor, bool]] = []

    def denoise(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        asked.append(((x - x0) / sigma.view(-1, 1, 1, 1), torch.is_grad_enabled()))
        return x

    consistency_loss(denoise, x0, labels, t, r, noise)
    assert [enabled for _, enabled in asked] == [False, True]
    for seen, _ in asked:
        torch.testing.assert_close(seen, noise, rtol=1e-4, atol=1e-4)


def test_no_second_forward_where_the_target_is_clean() -> None:
    """With r at sigma_min the loss is the distance to the clean image and costs one forward."""
    x0, labels, noise = pictures(2)
    sizes: list[int] = []

    def denoise(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        sizes.append(len(x))
        return x0 + 1

    t = torch.tensor([0.3, 0.1])
    loss = consistency_loss(denoise, x0, labels, t, nearer_sigma(t, 0, 4.0), noise)
    assert sizes == [2]
    torch.testing.assert_close(loss, pseudo_huber(torch.ones_like(x0)) / (t - SIGMA_MIN))


@pytest.mark.parametrize(("balanced", "expected"), [(False, 1 / 80), (True, 1.0)])
def test_balanced_weight_gives_every_level_the_same_gradient(balanced: bool, expected: float) -> None:
    """The network's output at sigma 80 gets as much gradient as at 1, where the plain weight gives an 80th."""
    x0, labels, noise = pictures(2)
    output = torch.ones_like(x0, requires_grad=True)
    t = torch.tensor([1.0, 80.0])

    def denoise(x: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        c_out = boundary_scalings(sigma)[1].view(-1, 1, 1, 1)
        return x0 + c_out * output if torch.is_grad_enabled() else x0

    consistency_loss(denoise, x0, labels, t, t * 0.75, noise, balanced).sum().backward()
    assert output.grad is not None
    low, high = output.grad.flatten(1).norm(dim=1).tolist()
    c_out = boundary_scalings(t)[1]
    plain = float(c_out[1] / c_out[0])
    assert high / low == pytest.approx(expected * (1 if balanced else plain), rel=0.02)


def test_matching_points_from_the_real_estimate_to_the_fake_one() -> None:
    """Every value has (fake - real) / mean |sample - real|; none where they agree."""
    samples = torch.zeros(2, 3, 4, 4)
    real = torch.full(samples.shape, 0.5)
    fake = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.5)])
    direction = matching_direction(samples, real, fake)
    torch.testing.assert_close(direction[0], torch.full((3, 4, 4), (0.1 - 0.5) / 0.5))
    assert float(direction[1].abs().max()) == 0.0


def test_presets_name_every_phase() -> None:
    """A preset's phases are reachable by name, and a change leaves the preset alone."""
    recipe = PRESETS["32"].with_phase("tune", images=5)
    assert (recipe.phase("tune").images, PRESETS["32"].tune.images) == (5, 100_000)
    assert recipe.phase("pretrain") == PRESETS["32"].pretrain

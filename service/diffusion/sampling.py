"""Multistep consistency sampling (Song et al. 2023, algorithm 1) and the plain offline loop built from it.

The offline loop is the oracle of the batched path: both call the same functions, row by row or together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from service.diffusion.denoiser import Network, denoise, per_row
from service.diffusion.noise import NoiseSource
from service.diffusion.operators import AnyEdit, Opening, Operator
from service.diffusion.schedule import NoiseSchedule


def first_state(edit: AnyEdit | None, latents: Tensor, sigma: float, schedule: NoiseSchedule) -> Tensor:
    """The first x `[1, C, H, W]` of a run that visits `sigma` first; `latents` are its first draw, on the CPU."""
    if edit is None:
        return latents * schedule.sigma_max
    _, channels, height, width = latents.shape
    return edit.first_state(
        Opening(latents, sigma, schedule, lambda seed: NoiseSource(seed, (channels, height, width)).draw())
    )


def operate(denoised: Tensor, operators: Sequence[Operator | None]) -> Tensor:
    """Each row's operator on its x0 estimate, row by row, so that no row depends on its neighbours.

    Without operators the estimates `[B, C, H, W]` come back as they are.
    """
    if not any(operators):
        return denoised
    rows = zip(denoised.split(1), operators, strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([row if operator is None else operator(row) for row, operator in rows])


def renoise(denoised: Tensor, noise: Tensor, sigmas_next: Sequence[float], schedule: NoiseSchedule) -> Tensor:
    """Takes each row of x0 estimates `[B, C, H, W]` to its own next sigma with unit-variance `noise`."""
    sigma = per_row(sigmas_next, denoised.device).clamp(schedule.sigma_min, schedule.sigma_max)
    return denoised + noise * schedule.s_noise * (sigma**2 - schedule.sigma_min**2).clamp(min=0) ** 0.5


def to_unit_range(x: Tensor) -> Tensor:
    """Images in [-1, 1] as [0, 1], clamped; what diffusers calls `output_type="pt"`."""
    return (x / 2 + 0.5).clamp(0, 1)


def quantise(images: Tensor) -> Tensor:
    """[0, 1] to uint8, rounding half to even, as `VaeImageProcessor.numpy_to_pil`."""
    return (images * 255).round().to(torch.uint8)


def sample_image(
    network: Network,
    schedule: NoiseSchedule,
    sigmas: Sequence[float],
    *,
    seed: int,
    shape: tuple[int, int, int],
    class_label: int | None = None,
    latents: Tensor | None = None,
    edit: AnyEdit | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """One image `[1, C, H, W]` in [-1, 1], alone and step by step.

    `latents` `[1, C, H, W]` replace the first draw. `on_step` receives each step's 1-based number and x0 estimate,
    with an `edit` (algorithm 4 of the paper) after its operator.
    """
    noise = NoiseSource(seed, shape)
    labels = None if class_label is None else torch.tensor([class_label])
    x = first_state(edit, noise.draw() if latents is None else latents, sigmas[0], schedule)
    operator = None if edit is None else edit.operator(x)
    for step, sigma in enumerate(sigmas, start=1):
        x = operate(denoise(network, x, [sigma], labels, schedule), [operator])
        if on_step is not None:
            on_step(step, x)
        if step < len(sigmas):
            x = renoise(x, noise.draw(), [sigmas[step]], schedule)
    return x if operator is None else operator.pull_in(x)

"""Backgrounds of one colour: found beside the drawing, given the avatars' nearest colour, left alone in doubt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.backgrounds import Backgrounds, background
from training.data import Avatars, to_signed
from training.recipe import CLASSES

PINK, BLUE, INK = (255, 213, 220), (182, 227, 244), (40, 30, 60)
DISC = (torch.arange(32)[:, None] - 16).square() + (torch.arange(32) - 16).square() < 100


def on(colours: Tensor) -> Tensor:
    """A disc of ink on backgrounds of uint8 `[N, 32, 32, 3]`."""
    return torch.where(DISC[None, :, :, None], torch.tensor(INK, dtype=torch.uint8), colours)


@pytest.fixture
def avatars(tmp_path: Path) -> Avatars:
    """Of every class, five discs on pink and five on blue."""
    plain = torch.tensor([PINK, BLUE] * 5, dtype=torch.uint8)[:, None, None].expand(-1, 32, 32, -1)
    for name in CLASSES:
        np.save(tmp_path / f"train-{name}-0000000.npy", on(plain).numpy())
        (tmp_path / f"train-{name}-0000000.json").write_text(json.dumps({}))
    return Avatars(tmp_path, "train")


def shaded(least_blue: float, most_blue: float) -> Tensor:
    """One disc on a background from one mixture of pink and blue to another, `[1, 3, 32, 32]` in [-1, 1]."""
    place = torch.linspace(least_blue, most_blue, 32)[None, None, :, None]
    colours = torch.tensor(PINK) * (1 - place) + torch.tensor(BLUE) * place
    return to_signed(on(colours.round().to(torch.uint8).expand(1, 32, 32, 3)))


@pytest.mark.parametrize(("mixtures", "expected"), [((0.0, 0.6), PINK), ((0.3, 0.9), BLUE)])
def test_a_shaded_background_gets_the_nearest_colour_of_the_avatars(
    avatars: Avatars, mixtures: tuple[float, float], expected: tuple[int, int, int]
) -> None:
    """All of it, the same; the drawing does not change."""
    picture = shaded(*mixtures)
    levelled = Backgrounds(avatars, "cpu").levelled(picture, torch.tensor([3]))[0]
    colour = torch.tensor(expected) / 127.5 - 1
    assert torch.allclose(levelled[:, ~DISC], colour[:, None].expand(3, int((~DISC).sum())))
    assert torch.equal(levelled[:, DISC], picture[0][:, DISC])


def test_avatars_stay_as_they_are(avatars: Avatars) -> None:
    """Their backgrounds have these colours already."""
    pictures = to_signed(torch.from_numpy(avatars.images[0]))
    assert torch.allclose(Backgrounds(avatars, "cpu").levelled(pictures, torch.zeros(10, dtype=torch.long)), pictures)


def test_a_drawing_that_melts_into_the_background_is_left_alone(avatars: Avatars) -> None:
    """More background than an avatar of the class has: the drawing must be in it, so nothing is levelled."""
    pale = shaded(0.0, 0.6)
    pale[:, :, DISC] = pale[:, :, 16, :1] + 0.03
    assert background(pale).float().mean() > 0.9
    both = torch.cat([pale, shaded(0.0, 0.6)])
    levelled = Backgrounds(avatars, "cpu").levelled(both, torch.tensor([0, 0]))
    assert torch.equal(levelled[0], pale[0])
    assert not torch.equal(levelled[1], both[1])


def test_the_background_of_grainy_pictures_is_found_in_clear_ones(avatars: Avatars) -> None:
    """Alone, grain hides it; with a clear picture it becomes level, and the drawing keeps its grain."""
    clear, labels, backgrounds = shaded(0.0, 0.6), torch.tensor([3]), Backgrounds(avatars, "cpu")
    grainy = clear + 0.2 * torch.randn(clear.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backgrounds.levelled(grainy, labels), grainy)
    levelled = backgrounds.levelled(grainy, labels, seen=clear)
    assert torch.equal(levelled[:, :, ~DISC], backgrounds.levelled(clear, labels)[:, :, ~DISC])
    assert torch.equal(levelled[:, :, DISC], grainy[:, :, DISC])


def test_an_area_of_the_same_colour_inside_the_drawing_is_drawing() -> None:
    """Only what is joined to the border is background."""
    picture = shaded(0.0, 0.0)
    picture[:, :, 12:20, 12:20] = picture[0, :, 0, 0].view(1, 3, 1, 1)
    found = background(picture)[0]
    assert not found[12:20, 12:20].any()
    assert found[0].all()

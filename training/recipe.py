"""The recipe's settings: one preset for each picture size, and a miniature for tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

CLASSES = (
    "adventurer",
    "big-ears",
    "big-smile",
    "croodles",
    "lorelei",
    "micah",
    "open-peeps",
    "personas",
    "pixel-art",
    "thumbs",
)
Phase = Literal[
    "pretrain", "tune", "distill", "polish", "snap", "adversarial", "finish", "grow", "sharpen", "pair", "scratch"
]
Weighting = Literal["gap", "balanced"]


@dataclass(frozen=True)
class NetworkSettings:
    """Size of the UNet; `time_cutoff` is the shortest period in ln sigma that the network sees (0: all)."""

    image_size: int
    block_out_channels: tuple[int, ...]
    attention_at: tuple[int, ...]  # resolutions with self-attention
    layers_per_block: int = 2
    norm_num_groups: int = 32
    attention_head_dim: int = 64
    time_cutoff: float = 0.5

    def halved(self) -> NetworkSettings:
        """Of the network for half the side that a grown one begins with: without the outer level."""
        return replace(self, image_size=self.image_size // 2, block_out_channels=self.block_out_channels[1:])


@dataclass(frozen=True)
class PhaseSettings:
    """One phase of training: how much, how fast, at which noise levels."""

    images: int  # the phase ends after so many; learning rate and stages follow it
    batch: int
    learning_rate: float
    warmup: int  # steps
    ema: float  # ceiling; in the first steps (1 + n) / (10 + n) is used where lower
    p_mean: float = 0.0  # ln sigma ~ N(p_mean, p_std); the polish has levels of its own
    p_std: float = 1.0
    stages: int = 1  # tuning: how often the two noise levels move closer
    first_stage: int = 0
    q: float = 4.0
    weighting: Weighting = "gap"
    haze: float = 0.015  # finish, pair: the most noise over what the critic sees
    first_drift: float = 0.5  # finish, pair: how hard drift pulls one-step pictures, of what it does the others
    ahead: int = 0  # batches that the fake and the critic learn before the model moves


@dataclass(frozen=True)
class Recipe:
    """A network and its phases. `scratch` is consistency training without pre-training.

    In `distill`, images are samples, and the noise levels are those at which the two denoisers look at them.
    """

    network: NetworkSettings
    pretrain: PhaseSettings
    tune: PhaseSettings
    distill: PhaseSettings
    polish: PhaseSettings
    snap: PhaseSettings
    adversarial: PhaseSettings
    finish: PhaseSettings
    pair: PhaseSettings
    scratch: PhaseSettings
    grow: PhaseSettings | None = None  # these two only of a recipe that begins with a smaller model
    sharpen: PhaseSettings | None = None

    def phase(self, name: Phase) -> PhaseSettings:
        """The settings of a phase by its name."""
        settings: PhaseSettings = getattr(self, name)
        return settings

    def with_phase(self, name: Phase, **changes: Any) -> Recipe:
        """The same recipe with some settings of one phase changed."""
        return replace(self, **{name: replace(self.phase(name), **changes)})

    def as_json(self) -> dict[str, Any]:
        """Plain values, for checkpoints and results."""
        return asdict(self)


PRESETS: dict[str, Recipe] = {
    # For a GPU: 3 million images and more, an hour or two of an H200 by the rates that were measured; not run yet.
    "64": Recipe(
        network=NetworkSettings(64, (64, 128, 192, 192), attention_at=(16, 8)),
        pretrain=PhaseSettings(1_700_000, 256, 1e-3, 1000, 0.9995, p_mean=-0.8, p_std=1.4),
        tune=PhaseSettings(1_000_000, 256, 3e-4, 200, 0.9995, p_mean=-1.1, p_std=2.0, stages=4),
        distill=PhaseSettings(200_000, 256, 5e-5, 50, 0.998, p_mean=-0.1, p_std=1.2, ahead=100),
        polish=PhaseSettings(400_000, 256, 4e-4, 50, 0.998),
        snap=PhaseSettings(100_000, 256, 4e-4, 50, 0.998),
        adversarial=PhaseSettings(300_000, 256, 3e-4, 50, 0.998, ahead=100),
        finish=PhaseSettings(300_000, 256, 3e-4, 50, 0.998, ahead=60),
        pair=PhaseSettings(400_000, 128, 5e-4, 50, 0.998, haze=0.05, first_drift=1.0, ahead=30),
        scratch=PhaseSettings(3_000_000, 256, 4e-4, 1000, 0.9995, p_mean=-1.1, p_std=2.0, stages=4),
    ),
    # For a few CPU cores. Few images, so tuning looks at high noise more often and weighs it as much as low
    # noise: a one-step picture comes from sigma_max, which the paper's distribution hardly visits.
    "32": Recipe(
        network=NetworkSettings(32, (32, 96, 192), attention_at=(8,)),
        pretrain=PhaseSettings(154_000, 64, 1e-3, 200, 0.999, p_mean=-0.8, p_std=1.4),
        tune=PhaseSettings(100_000, 64, 2e-4, 20, 0.999, p_mean=0.5, p_std=1.8, stages=2, weighting="balanced"),
        distill=PhaseSettings(26_400, 32, 2.5e-4, 10, 0.99, p_mean=-1.0, p_std=1.1, ahead=100),
        polish=PhaseSettings(78_000, 16, 5e-4, 20, 0.995),
        snap=PhaseSettings(14_000, 32, 5e-4, 20, 0.99),
        adversarial=PhaseSettings(108_000, 32, 3e-4, 20, 0.995, ahead=100),
        finish=PhaseSettings(210_000, 16, 3e-4, 20, 0.995, ahead=60),
        pair=PhaseSettings(200_000, 16, 5e-4, 20, 0.995, haze=0.05, first_drift=1.0, ahead=30),
        scratch=PhaseSettings(250_000, 64, 4e-4, 200, 0.999, p_mean=0.5, p_std=1.8, stages=2, weighting="balanced"),
    ),
    # Every part in miniature, to see that it runs.
    "smoke": Recipe(
        network=NetworkSettings(
            16, (16, 32), attention_at=(8,), layers_per_block=1, norm_num_groups=8, attention_head_dim=16
        ),
        pretrain=PhaseSettings(3_200, 32, 2e-3, 20, 0.98, p_mean=-0.8, p_std=1.4),
        tune=PhaseSettings(1_600, 32, 1e-3, 10, 0.98, p_mean=0.5, p_std=1.8, weighting="balanced"),
        distill=PhaseSettings(320, 16, 1e-4, 5, 0.9, p_mean=-0.1, p_std=1.2, ahead=5),
        polish=PhaseSettings(320, 16, 1e-4, 5, 0.9),
        snap=PhaseSettings(320, 16, 1e-4, 5, 0.9),
        adversarial=PhaseSettings(320, 16, 1e-4, 5, 0.9, ahead=5),
        finish=PhaseSettings(320, 16, 1e-4, 5, 0.9, ahead=5),
        pair=PhaseSettings(320, 16, 1e-4, 5, 0.9, ahead=5),
        scratch=PhaseSettings(1_600, 32, 1e-3, 10, 0.98, p_mean=0.5, p_std=1.8, weighting="balanced"),
    ),
}

# The finished model of 32 px, grown and sharpened: two and a half hours of a CPU. The other phases could follow.
PRESETS["64-grown"] = replace(
    PRESETS["64"],
    network=NetworkSettings(64, (32, 32, 96, 192), attention_at=(8,)),
    grow=PhaseSettings(24_000, 16, 2e-3, 30, 0.995),
    sharpen=PhaseSettings(48_000, 16, 4e-4, 30, 0.995, ahead=100),
)

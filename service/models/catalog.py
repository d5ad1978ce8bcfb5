"""The checkpoints that the paper's authors published, by short names.

Facts are those of openai/consistency_models: `scripts/launch.sh` (training scales, two-step schedules) and
its model card. The hub ids hold the same weights in diffusers' format.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec


class CatalogEntry(msgspec.Struct, frozen=True):
    """One published checkpoint. `timesteps` is the authors' two-step schedule, descending as in diffusers."""

    hub_id: str
    dataset: str
    method: str
    image_size: int  # pixels
    num_classes: int | None
    num_train_timesteps: int
    timesteps: tuple[int, ...] | None  # None: the authors published no schedule for this checkpoint
    license: str = "mit"

    @property
    def class_names(self) -> tuple[str, ...]:
        """ImageNet's class names for a class-conditional checkpoint, else none."""
        return () if self.num_classes is None else imagenet_classes()


def _imagenet(name: str, method: str, scales: int, timesteps: tuple[int, ...]) -> CatalogEntry:
    return CatalogEntry(f"openai/diffusers-{name}", "ImageNet", method, 64, 1000, scales, timesteps)


def _lsun(name: str, dataset: str, method: str, scales: int, timesteps: tuple[int, ...] | None) -> CatalogEntry:
    return CatalogEntry(f"openai/diffusers-{name}", dataset, method, 256, None, scales, timesteps)


# The scripts write a schedule in order of visit with the end of the grid behind it: 0,22,39 of 40 visits the
# grid indices 0 and 22, which diffusers takes as [22, 0].
CATALOG: dict[str, CatalogEntry] = {
    "cd-imagenet64-l2": _imagenet("cd_imagenet64_l2", "distillation, l2", 40, (22, 0)),
    "cd-imagenet64-lpips": _imagenet("cd_imagenet64_lpips", "distillation, LPIPS", 40, (22, 0)),
    "ct-imagenet64": _imagenet("ct_imagenet64", "training, LPIPS", 201, (106, 0)),
    "cd-bedroom256-l2": _lsun("cd_bedroom256_l2", "LSUN Bedroom", "distillation, l2", 40, (18, 0)),
    "cd-bedroom256-lpips": _lsun("cd_bedroom256_lpips", "LSUN Bedroom", "distillation, LPIPS", 40, (17, 0)),
    "ct-bedroom256": _lsun("ct_bedroom256", "LSUN Bedroom", "training, LPIPS", 151, (67, 0)),
    "cd-cat256-l2": _lsun("cd_cat256_l2", "LSUN Cat", "distillation, l2", 40, None),
    "cd-cat256-lpips": _lsun("cd_cat256_lpips", "LSUN Cat", "distillation, LPIPS", 40, None),
    "ct-cat256": _lsun("ct_cat256", "LSUN Cat", "training, LPIPS", 151, (62, 0)),
}


def by_hub_id(hub_id: str) -> CatalogEntry | None:
    """The entry of a hub id (in any case), None when it is not one of the published checkpoints."""
    return next((entry for entry in CATALOG.values() if entry.hub_id.lower() == hub_id.lower()), None)


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 names of ImageNet's classes (ILSVRC 2012), in order of index."""
    text = resources.files("service.models").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())

"""Bodies of the edits: the fields beside `image` and `mask`, which `edit_body` takes out first."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictInt

from service.api.picture_input import Fit
from service.api.schemas import ImageRequest, Seed, SeededRequest, no_default

__all__ = [
    "ColorizeRequest",
    "DenoiseRequest",
    "EditRequest",
    "InpaintRequest",
    "InterpolateRequest",
    "StrokeRequest",
    "SuperResolutionRequest",
]

_EveryStep = Annotated[
    StrictInt,
    Field(
        ge=1,
        description="Evenly spaced steps, as diffusers spaces them; left out, every one of the model's grid.",
        json_schema_extra=no_default,
    ),
]


class EditRequest(SeededRequest):
    """What every edit of a picture can say."""

    fit: Annotated[
        Fit,
        Field(
            description="How a picture of another size becomes the model's: `crop` (centred square, then Lanczos), "
            "`pad` (white), or `exact` (another size is refused). A mask goes the same way, by nearest pixel."
        ),
    ] = "crop"


class InpaintRequest(EditRequest):
    """Makes the pixels under the mask; all others come back as they are."""

    num_inference_steps: _EveryStep = 1


class ColorizeRequest(EditRequest):
    """Makes colours for the picture's luma."""

    num_inference_steps: _EveryStep = 1


class SuperResolutionRequest(EditRequest):
    """Makes detail; block means stay."""

    num_inference_steps: _EveryStep = 1
    factor: Annotated[
        StrictInt,
        Field(
            ge=2,
            description="Side of the blocks whose means are kept; must divide the model's side. A picture of side "
            "/ factor is taken as those means.",
        ),
    ] = 8


class StrokeRequest(EditRequest):
    """Makes a picture from a painting (SDEdit)."""

    num_inference_steps: Annotated[
        StrictInt,
        Field(
            ge=1,
            description="Evenly spaced steps from the first level on; left out, 4, or as many as are left.",
            json_schema_extra=no_default,
        ),
    ] = 1
    strength: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            allow_inf_nan=False,
            description="How much is made anew: the run starts at grid index `round((1 - strength) * "
            "(num_train_timesteps - 1))`. Explicit `timesteps` say where it starts themselves. Left out, 0.6.",
            json_schema_extra=no_default,
        ),
    ] = 0.6


class DenoiseRequest(EditRequest):
    """Denoises a picture in one pass."""

    num_inference_steps: Annotated[StrictInt, Field(ge=1, le=1, description="It is one pass.")] = 1
    sigma: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Noise level, from the model's `sigma_min` to its `sigma_max`, where pictures are in "
            "[-1, 1]. Seeded noise of that level is added first, but not to a `.npy`.",
        ),
    ]


class InterpolateRequest(ImageRequest):
    """Makes the pictures between those of two seeds."""

    seed_from: Annotated[Seed, Field(description="Seed of the first picture, and of all later noise draws.")]
    seed_to: Annotated[Seed, Field(description="Seed whose first noise draw is that of the last picture.")]
    frames: Annotated[StrictInt, Field(ge=2, le=64, description="Pictures, both ends included.")] = 8

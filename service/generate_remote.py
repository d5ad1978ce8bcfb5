"""`onestep generate --server URL`: the same files, made by a running service."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from service.client import (
    AuthenticationFailed,
    Client,
    GeneratedImage,
    InvalidRequest,
    Model,
    NotFound,
    OnestepError,
    QuotaExceeded,
)
from service.diffusion.schedule import NoiseSchedule
from service.engine.request import MAX_SEED
from service.exits import ExitCode
from service.models.classes import class_of_seed
from service.npz import OtherRun, ResumableNpz, Run
from service.resumed import Expected, file_name, is_made
from service.settings import variable_of

__all__ = ["run_remote"]

BATCH: Final = 16  # images a request; fewer where the service's own limit is lower


def run_remote(args: argparse.Namespace) -> int:
    """Makes what is missing of the images; the exit code says how it ended. Of keys it sends the first that is set."""
    key = os.environ.get(variable_of("api_keys"), "").split(",")[0].strip()
    try:
        with Client(args.server, api_key=key or None) as client:
            models = client.models() if args.model is None else (client.model(args.model),)
            if not models:
                return _refuse("the server serves no model", ExitCode.REMOTE)
            model = models[0]
            if args.npz is None:
                return _to_folder(args, client, model)
            return _to_npz(args, client, model)
    except (OtherRun, InvalidRequest, NotFound, AuthenticationFailed, ValueError) as error:
        return _refuse(error, ExitCode.USAGE)
    except OnestepError as error:
        return _refuse(error, ExitCode.REMOTE)
    except OSError as error:  # the target cannot be written
        return _refuse(f"{error.filename or args.out or args.npz}: {error.strerror}", ExitCode.USAGE)
    except KeyboardInterrupt:
        return _refuse("interrupted; the same command goes on from here", ExitCode.FORCED)


def _refuse(reason: object, code: ExitCode) -> ExitCode:
    print(f"onestep generate: {reason}", file=sys.stderr)
    return code


def _fields(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """The request's fields, its seeds aside. Raises ValueError."""
    if args.count < 1:
        raise ValueError("count: must be 1 or more")
    if args.count > MAX_SEED or not 0 <= args.seed <= MAX_SEED - args.count + 1:
        raise ValueError("count and seed must leave all seeds within 0 .. 2^53 - 1")
    fields: dict[str, Any] = {"model": model.id}
    if args.class_label != "any":
        fields["class_labels"] = args.class_label
    if args.timesteps is None:
        fields["num_inference_steps"] = args.steps
    else:
        try:
            fields["timesteps"] = [int(timestep) for timestep in args.timesteps.split(",")]
        except ValueError:
            raise ValueError("timesteps: give integers with commas between") from None
    return fields


def _to_folder(args: argparse.Namespace, client: Client, model: Model) -> ExitCode:
    folder: Path = args.out
    fields, labels = _fields(args, model), _labels(args, model)
    folder.mkdir(parents=True, exist_ok=True)
    timesteps = fields.get("timesteps")
    if timesteps is None:
        # how they are spaced depends on their number alone; a number that the service will refuse makes none
        spaced = NoiseSchedule(num_train_timesteps=model.num_train_timesteps).evenly_spaced
        timesteps = spaced(args.steps) if args.steps > 0 else []
    expected = Expected(model.id, model.revision, timesteps)
    missing = [seed for seed, label in labels.items() if not is_made(folder / file_name(seed, label), expected)]
    for image in _images(client, fields, missing, args.count):
        target = folder / file_name(image.seed, image.class_label)
        scratch = target.with_name(target.name + ".part")
        image.save(scratch)
        scratch.replace(target)
    return ExitCode.OK


def _labels(args: argparse.Namespace, model: Model) -> dict[int, int | None]:
    """The class index of each seed's image; None on a model without classes. Raises ValueError."""
    seeds = range(args.seed, args.seed + args.count)
    if args.class_label != "any":
        found = [known.index for known in model.classes if args.class_label in (known.slug, str(known.index))]
        if not found:
            raise ValueError("class: the model has no such class")
        return dict.fromkeys(seeds, found[0])
    count = len(model.classes)
    return {seed: class_of_seed(seed, count) if model.class_conditional else None for seed in seeds}


def _to_npz(args: argparse.Namespace, client: Client, model: Model) -> ExitCode:
    fields, labels = _fields(args, model), _labels(args, model)
    steps: dict[str, Any] = {"timesteps": fields["timesteps"]} if "timesteps" in fields else {"steps": args.steps}
    run = Run(
        revision=model.revision,
        # Equal ETags, equal bytes: it stands for the numerics and the steps.
        fingerprint=client.image_etag(model.id, args.class_label, args.seed, **steps),
        sigmas=(),
        first_seed=args.seed,
        count=args.count,
        class_label=None if args.class_label == "any" else labels[args.seed],
    )
    images = ResumableNpz(args.npz, run, (model.image_size, model.image_size, model.channels))
    missing = [args.seed + index for index in images.missing()]
    for image in _images(client, fields, missing, args.count):
        images.put(image.seed - args.seed, np.asarray(image.image).tobytes())
    images.complete([label or 0 for label in labels.values()])
    return ExitCode.OK


def _too_many(error: InvalidRequest | QuotaExceeded) -> bool:
    """Whether fewer images in a request may be allowed."""
    if isinstance(error, QuotaExceeded):
        return error.retry_after is None
    return any("batch_size" in wrong.loc for wrong in error.errors)


def _images(client: Client, fields: dict[str, Any], seeds: Sequence[int], total: int) -> Iterator[GeneratedImage]:
    """The images of these seeds, a request for each few of them."""
    size, position = BATCH, 0
    with tqdm(total=total, initial=total - len(seeds), unit="image") as progress:
        while position < len(seeds):
            some = seeds[position : position + size]
            try:
                generation = client.generate(batch_size=len(some), seed=some, **fields)
            except (InvalidRequest, QuotaExceeded) as error:
                if size == 1 or not _too_many(error):
                    raise
                size //= 2
                continue
            yield from generation
            position += len(some)
            progress.update(len(some))

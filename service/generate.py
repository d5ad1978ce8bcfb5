"""`onestep generate`: images to a folder or an `.npz`, without a server. The bytes are the server's."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import FatalModelError, InferenceFailed, InvalidRequest, ServiceError
from service.exits import ExitCode

if TYPE_CHECKING:
    from service.api.planning import Plan
    from service.engine.offline import OfflineEngine
    from service.engine.request import Sample, SampleResult
    from service.models.info import ModelInfo
    from service.settings import Settings

ENGINE_SETTINGS = (
    "device",
    "dtype",
    "threads",
    "cache_dir",
    "max_batch_size",
    "max_step_time",
    "batch_invariant",
    "compile",
)


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Registers the command; it sets `run`, a function of the parsed arguments that gives the exit code."""
    parser = subparsers.add_parser(
        "generate",
        help="make images, here or by a server",
        description="Makes images of consecutive seeds with the server's engine, so that the bytes are the server's. "
        "An interrupted run goes on where it was when the same command is given again. "
        f"The engine's settings come from the variables ONESTEP_{{{','.join(s.upper() for s in ENGINE_SETTINGS)}}}.",
    )
    parser.add_argument(
        "--model", metavar="PLACE", help="folder, hub id or short name (default: ONESTEP_MODEL, else bundled)"
    )
    parser.add_argument("--count", "-n", type=int, default=1, metavar="N", help="how many images (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first image (default: 0)")
    parser.add_argument(
        "--class",
        dest="class_label",
        default="any",
        metavar="C",
        help="index, slug, or any (default: any, the seed decides)",
    )
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--steps", type=int, default=1, metavar="N", help="evenly spaced steps (default: 1)")
    steps.add_argument("--timesteps", metavar="T,T", help="explicit steps, descending, such as 22,0")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="FOLDER", help="a PNG for each image")
    target.add_argument(
        "--npz", type=Path, metavar="FILE", help="one file with arr_0 uint8 [N, H, W, C] and arr_1 labels"
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        help="let a running service make them, such as http://127.0.0.1:8000; --model is then a name it serves",
    )
    parser.set_defaults(run=run_generate)


def run_generate(args: argparse.Namespace) -> int:
    """Makes what is missing of the images; the exit code says how it ended."""
    if args.server is not None:
        from service.generate_remote import run_remote

        return run_remote(args)
    from service.models.places import load_infos
    from service.settings import SettingsError, load_settings

    try:
        settings = load_settings({} if args.model is None else {"model": args.model}, os.environ)
        info = next(iter(load_infos(settings.model).values()))
        plan = _plan(args, info)
        return _run(args, plan, settings)
    except InferenceFailed as error:
        print(f"onestep generate: {error}", file=sys.stderr)
        return ExitCode.FAULT
    except (SettingsError, ServiceError) as error:
        where = f"{error.loc[-1]}: " if isinstance(error, InvalidRequest) else ""
        print(f"onestep generate: {where}{error}", file=sys.stderr)
        return ExitCode.USAGE
    except FatalModelError as error:
        print(f"onestep generate: {error}", file=sys.stderr)
        return ExitCode.MODEL
    except OSError as error:  # the target cannot be written
        print(f"onestep generate: {error.filename or args.out or args.npz}: {error.strerror}", file=sys.stderr)
        return ExitCode.USAGE
    except KeyboardInterrupt:
        print("onestep generate: interrupted; the same command goes on from here", file=sys.stderr)
        return ExitCode.FORCED


def _plan(args: argparse.Namespace, info: ModelInfo) -> Plan:
    """The run as the server would plan it. Raises InvalidRequest."""
    from service.api.planning import Plan, resolve_timesteps
    from service.engine.request import MAX_SEED

    if args.count < 1:
        raise InvalidRequest("must be 1 or more", loc=("count",), code="range")
    if args.count > MAX_SEED or not 0 <= args.seed <= MAX_SEED - args.count + 1:
        raise InvalidRequest("count and seed must leave all seeds within 0 .. 2^53 - 1", loc=("seed",), code="range")
    given = None
    if args.timesteps is not None:
        try:
            given = [int(timestep) for timestep in args.timesteps.split(",")]
        except ValueError:
            raise InvalidRequest("give integers with commas between", loc=("timesteps",), code="int_type") from None
    timesteps = resolve_timesteps(info, given, args.steps)
    sigmas = info.schedule.sigmas(timesteps)
    samples = tuple(_samples(args, info, sigmas))
    return Plan(info, timesteps, sigmas, samples, "png", None, float("inf"), ("steps",))


def _samples(args: argparse.Namespace, info: ModelInfo, sigmas: tuple[float, ...]) -> Iterator[Sample]:
    from service.api.planning import any_class
    from service.engine.request import Sample
    from service.models.classes import ClassTable

    label = ClassTable(info).from_url(args.class_label)
    for seed in range(args.seed, args.seed + args.count):
        chosen = any_class(info, seed) if label is None else label
        yield Sample(
            id=0, request=0, client="", model=info.name, seed=seed, class_label=chosen, sigmas=sigmas, pixels="uint8"
        )


def _run(args: argparse.Namespace, plan: Plan, settings: Settings) -> int:
    from service.npz import OtherRun

    try:
        return _to_folder(args.out, plan, settings) if args.npz is None else _to_npz(args, plan, settings)
    except OtherRun as error:
        print(f"onestep generate: {error}", file=sys.stderr)
        return ExitCode.USAGE


def _engine(plan: Plan, settings: Settings) -> OfflineEngine:
    from service.engine.offline import OfflineEngine
    from service.launch import engine_configs

    print("loading the model ...", file=sys.stderr)
    return OfflineEngine(plan.model, engine_configs(settings)[0])


def _to_folder(folder: Path, plan: Plan, settings: Settings) -> int:
    from service.api.encoding import encode
    from service.api.rendering import picture_of
    from service.resumed import Expected, file_name, is_made

    folder.mkdir(parents=True, exist_ok=True)
    expected = Expected(plan.model.name, plan.model.revision, plan.timesteps)
    targets = {sample.seed: folder / file_name(sample.seed, sample.class_label) for sample in plan.samples}
    missing = [sample for sample in plan.samples if not is_made(targets[sample.seed], expected)]
    for index, result in _with_progress(_engine(plan, settings), missing, len(plan.samples)) if missing else ():
        sample = missing[index]
        target = targets[sample.seed]
        scratch = target.with_name(target.name + ".part")
        scratch.write_bytes(encode(picture_of(plan, sample, result), "png"))
        scratch.replace(target)
    return ExitCode.OK


def _to_npz(args: argparse.Namespace, plan: Plan, settings: Settings) -> int:
    from service.npz import ResumableNpz, Run, refuse_folder

    refuse_folder(args.npz)
    args.npz.parent.mkdir(parents=True, exist_ok=True)
    engine = _engine(plan, settings)
    run = Run(
        revision=plan.model.revision,
        fingerprint=engine.status.fingerprint,
        sigmas=plan.sigmas,
        first_seed=args.seed,
        count=args.count,
        class_label=None if args.class_label == "any" else plan.samples[0].class_label,
    )
    channels, height, width = plan.model.latent_shape
    images = ResumableNpz(args.npz, run, (height, width, channels))
    missing = images.missing()
    for index, result in _with_progress(engine, [plan.samples[i] for i in missing], args.count):
        images.put(missing[index], result.pixels)
    images.complete([sample.class_label or 0 for sample in plan.samples])
    return ExitCode.OK


def _with_progress(engine: OfflineEngine, samples: Sequence[Sample], total: int) -> Iterator[tuple[int, SampleResult]]:
    from tqdm import tqdm

    with tqdm(total=total, initial=total - len(samples), unit="image") as progress:
        for index, result in engine.run(samples):
            yield index, result
            progress.update()

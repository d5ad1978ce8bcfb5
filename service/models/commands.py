"""`onestep models` and `onestep convert`. Heavy imports happen inside, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from service.errors import FatalModelError
from service.exits import ExitCode
from service.models.info import ModelInfo


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Registers both commands; each sets `run`, a function of the parsed arguments that gives the exit code."""
    models = subparsers.add_parser(
        "models",
        help="list the models that can be served, or check some",
        description="Lists the bundled and published models by their short names. With PLACE, checks those "
        "models as `onestep serve` would (a hub model is downloaded if need be) and says what is in them.",
    )
    models.add_argument("places", nargs="*", metavar="PLACE", help="bundled or short name, folder, or hub id")
    models.set_defaults(run=run_models)
    convert = subparsers.add_parser(
        "convert",
        help="turn an original OpenAI .pt checkpoint into a model folder",
        description="Turns a checkpoint of openai/consistency_models (cd_imagenet64_l2.pt, ct_cat256.pt, ...) "
        "into a diffusers folder with safetensors weights, which `onestep serve --model FOLDER` can serve.",
    )
    convert.add_argument("checkpoint", type=Path, metavar="IN.pt", help="the original checkpoint")
    convert.add_argument("folder", type=Path, metavar="OUT_FOLDER", help="the folder to make; must not exist")
    convert.add_argument(
        "--layout",
        choices=["imagenet64", "lsun256"],
        help="the network's layout (default: known from the checkpoint's width)",
    )
    convert.add_argument(
        "--num-train-timesteps",
        type=int,
        metavar="N",
        help="noise levels of the training (default: known from the name of a published checkpoint)",
    )
    convert.set_defaults(run=run_convert)


def run_models(args: argparse.Namespace) -> int:
    """Prints the known models, or checks the given ones. ExitCode.MODEL when one cannot be served."""
    from service.models.places import load_infos

    if not args.places:
        _print_known()
        return ExitCode.OK
    from service.models.loader import load_unet

    code = ExitCode.OK
    for place in args.places:
        try:
            infos = load_infos(place)
            for info in infos.values():
                load_unet(info)
        except FatalModelError as error:
            print(f"onestep models: {error}", file=sys.stderr)
            code = ExitCode.MODEL
        else:
            print("\n\n".join(describe(info) for info in infos.values()))
    return code


def _print_known() -> None:
    from service.models.catalog import CATALOG
    from service.models.places import DEFAULT_MODEL, bundled_names, load_infos

    rows = [("NAME", "SIZE", "CLASSES", "TRAIN STEPS", "TWO STEPS", "LICENCE", "FROM")]
    for name in bundled_names():
        info = load_infos(name)[name]
        source = "bundled, the default" if name == DEFAULT_MODEL else "bundled"
        rows.append(
            (
                name,
                f"{info.image_size} px",
                str(info.num_classes or "-"),
                str(info.schedule.num_train_timesteps),
                "-",
                info.license or "-",
                source,
            )
        )
    for name, entry in CATALOG.items():
        rows.append(
            (
                name,
                f"{entry.image_size} px",
                str(entry.num_classes or "-"),
                str(entry.num_train_timesteps),
                ",".join(map(str, entry.timesteps)) if entry.timesteps else "-",
                entry.license,
                f"hub: {entry.hub_id} ({entry.dataset}, {entry.method})",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nTWO STEPS: the authors' own `timesteps`. Serve one with `onestep serve --model NAME`.")


def describe(info: ModelInfo) -> str:
    """Several lines on one checked model."""
    schedule = info.schedule
    lines = {
        "model": info.name,
        "folder": str(info.path),
        "revision": info.revision,
        "images": f"{info.image_size} x {info.image_size}, {'RGB' if info.channels == 3 else 'grey'}",
        "classes": "none" if info.num_classes is None else str(info.num_classes),
        "train steps": str(schedule.num_train_timesteps),
        "sigma": f"{schedule.sigma_min} to {schedule.sigma_max}, data {schedule.sigma_data}",
        "licence": info.license or "not said",
    }
    text = [f"{label:<12} {value}" for label, value in lines.items()]
    text += [f"{item.index:>12} {item.name}" + f"  ({item.slug})" * (item.slug != item.name) for item in info.classes]
    return "\n".join(text)


def run_convert(args: argparse.Namespace) -> int:
    """Converts and says how to serve the result. A reason on stderr otherwise."""
    wrong = None
    if args.num_train_timesteps is not None and not 2 <= args.num_train_timesteps <= 100_000:
        wrong = "--num-train-timesteps must be 2 to 100000"
    elif args.folder.exists():
        wrong = f"{args.folder} exists already"
    if wrong:
        print(f"onestep convert: {wrong}.", file=sys.stderr)
        return ExitCode.USAGE
    from service.models.convert import convert_checkpoint

    try:
        info = convert_checkpoint(
            args.checkpoint, args.folder, layout=args.layout, num_train_timesteps=args.num_train_timesteps
        )
    except FatalModelError as error:
        print(f"onestep convert: {error}", file=sys.stderr)
        return ExitCode.MODEL
    except OSError as error:
        print(f"onestep convert: {error.filename or args.folder}: {error.strerror}", file=sys.stderr)
        return ExitCode.USAGE
    kind = "unconditional" if info.num_classes is None else f"{info.num_classes} classes"
    print(f"{args.folder}: {info.image_size} px, {kind}, {info.schedule.num_train_timesteps} train steps.")
    print(f"Serve it with: onestep serve --model {args.folder.absolute()}")
    return ExitCode.OK

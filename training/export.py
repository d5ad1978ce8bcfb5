"""Saves averaged weights as a `ConsistencyModelPipeline` folder in float16.

    python -m training.export --preset 32 --weights training/runs/32/tune.safetensors --out out/avatars-32
    python -m training.export --pipeline out/avatars-64 --out out/joined        # one file out of many

A run's weights are rounded to what bfloat16 holds; a folder's are written as they are. `--shard 15MB` splits the
weights, where only small files can be moved.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

from service.engine.norm import cast
from training.network import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, build_unet, unet_of
from training.recipe import CLASSES, PRESETS
from training.state import load_weights


def scheduler() -> CMStochasticIterativeScheduler:
    """The noise schedule that the recipe trains for."""
    return CMStochasticIterativeScheduler(
        num_train_timesteps=40,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        sigma_data=SIGMA_DATA,
        s_noise=1.0,
        rho=7.0,
        clip_denoised=True,
    )


def save_pipeline(unet: UNet2DModel, out: Path, shard: str = "1GB") -> None:
    """Writes the folder: float16 safetensors, configurations, class names."""
    if not all(torch.isfinite(value.half()).all() for value in unet.state_dict().values()):
        raise ValueError("a weight is not finite in float16")
    pipeline = ConsistencyModelPipeline(unet=unet.half(), scheduler=scheduler())
    pipeline.save_pretrained(out, safe_serialization=True, max_shard_size=shard)
    config_path = out / "unet" / "config.json"
    config = json.loads(config_path.read_text())
    config.pop("_name_or_path", None)  # where it lay is nobody's business
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    labels = {str(i): name for i, name in enumerate(CLASSES)}
    (out / "labels.json").write_text(json.dumps(labels, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Exports from a run's weights, or from another pipeline folder."""
    parser = argparse.ArgumentParser(prog="training.export", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="<phase>.safetensors of a run")
    parser.add_argument("--preset", choices=sorted(PRESETS))
    parser.add_argument("--pipeline", type=Path, help="a pipeline folder to write again")
    parser.add_argument("--shard", default="1GB", help="largest file of weights")
    args = parser.parse_args(argv)
    if args.pipeline:
        unet = unet_of(args.pipeline)
    elif args.weights and args.preset:
        unet = build_unet(PRESETS[args.preset].network)
        unet.load_state_dict(load_weights(args.weights))
        cast(unet, torch.bfloat16)  # what serving in bfloat16 would round, so that there, too, weights are these
    else:
        parser.error("give --pipeline, or --weights and --preset")
    save_pipeline(unet, args.out, args.shard)


if __name__ == "__main__":
    main()

"""Compiles a network's body ahead of time: `python -m service.engine.compiling OUT < CONFIGURE`.

One library for any number of rows and threads. Only `service.engine.compiled` calls it.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from service.engine.embedding import Projections
from service.engine.norm import cast
from service.engine.packing import PACKED_FOR_ROWS
from service.engine.process import die_with_parent
from service.engine.protocol import HEADER, Configure, decode_to_engine
from service.engine.unet import UNetBody
from service.models.info import ModelInfo
from service.models.loader import load_unet

MOST_ROWS = 8  # the most that a part of a batch has
# Freezing folds weights into oneDNN's fused operators; otherwise the number of threads would be this process' own.
OPTIONS = {"freezing": True, "cpp.dynamic_threads": True}


def compile_body(info: ModelInfo, dtype: torch.dtype, out: Path) -> None:
    """Writes the shared library of the body of `info` in `dtype`, weights included, to `out`."""
    import torch._inductor
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler

    get_cpp_compiler()  # raises here and not after half a minute's work when there is none
    unet = load_unet(info)
    projections = Projections(unet)
    body = UNetBody(unet)
    cast(body, dtype)
    for weight in body.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    key = (0.0, 0 if info.class_conditional else None)
    prepared = projections.rows([key] * PACKED_FOR_ROWS).to(dtype)
    x = torch.zeros((PACKED_FOR_ROWS, *info.latent_shape), dtype=dtype).contiguous(memory_format=torch.channels_last)
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    with torch.no_grad(), config.patch(OPTIONS), tempfile.TemporaryDirectory() as scratch:
        program = torch.export.export(body, (x, prepared), dynamic_shapes=({0: rows}, {0: rows}))
        package = torch._inductor.aoti_compile_and_package(program, package_path=f"{scratch}/body.pt2")
        with zipfile.ZipFile(package) as members:
            (library,) = (name for name in members.namelist() if name.endswith(".so"))
            out.write_bytes(members.read(library))


def main(out: str) -> None:
    """Compiles the model of the `Configure` frame on standard input."""
    die_with_parent()
    configure = decode_to_engine(sys.stdin.buffer.read()[HEADER.size :])
    if not isinstance(configure, Configure):
        raise TypeError(f"the message is a {type(configure).__name__}")
    compile_body(configure.models[0], getattr(torch, configure.config.dtype), Path(out))


if __name__ == "__main__":
    main(sys.argv[1])

"""A network whose body was compiled ahead of time for this CPU; kept on disk for the next start.

`service.engine.compiling` compiles. The bits are not those of the network run operator by operator, so the
numerics fingerprint is another; they depend on rows and threads as little, which certification proves as ever.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from service.engine.aoti_library import Library
from service.engine.embedding import Key, Projections
from service.engine.forward import SAME
from service.engine.norm import cast
from service.engine.packing import PackedConv2d, input_shapes
from service.engine.protocol import Configure, EngineConfig, frame
from service.engine.unet import UNetBody
from service.errors import FatalModelError
from service.models.info import ModelInfo
from service.models.revision import file_digest

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DModel

log = logging.getLogger(__name__)

FORMAT = 2  # of what `service.engine.compiling` makes
SCRATCH = ".compiling-"
STALE = 86400.0  # seconds after which the scratch folder of a compiler that was killed is removed


class CompiledForward:
    """As `service.engine.forward.ProjectedForward`, its body compiled."""

    plan = "projected, compiled"
    teams = True

    def __init__(self, unet: UNet2DModel, info: ModelInfo, dtype: torch.dtype, config: EngineConfig) -> None:
        """`unet` is separable, in float32 on the CPU; it is taken apart. Compiles when no earlier start has."""
        self._dtype = dtype
        self._projections = Projections(unet)
        body = UNetBody(unet)
        cast(body, dtype)
        path = kept_library(info, config)
        try:
            self._library = Library(path, config.threads)
            self._pack(body, info)
        except (OSError, AttributeError, RuntimeError) as error:
            raise FatalModelError(f"{path}: cannot be used ({error}); delete it, or turn compile off.") from None

    def prepare(self, keys: Sequence[Key]) -> tuple[Tensor, ...]:
        """The blocks' projections of time and class."""
        return (self._projections.rows(keys).to(self._dtype),)

    def run(self, x: Tensor, prepared: tuple[Tensor, ...]) -> Tensor:
        """The network's body."""
        rows = x.to(dtype=self._dtype, memory_format=torch.channels_last)
        return self._library(rows, prepared[0].contiguous()).float().contiguous()

    def _pack(self, body: UNetBody, info: ModelInfo) -> None:
        """Hands the library its convolutions' weights in oneDNN's layout: it would pack its own in every call."""
        x = torch.randn((1, *info.latent_shape), generator=torch.Generator().manual_seed(0))
        prepared = self.prepare([(0.0, 0 if info.class_conditional else None)])
        rows = x.to(dtype=self._dtype, memory_format=torch.channels_last)
        shapes = input_shapes(body, rows, *prepared)
        expected = body(rows, *prepared).float()
        names = self._library.constants()
        packed = {
            names[f"{name}.weight"]: PackedConv2d(module, shapes[module]).weight
            for name, module in body.named_modules()
            if type(module) is nn.Conv2d and module in shapes and f"{name}.weight" in names
        }
        self._library.replace(packed)
        off = float((self.run(x, prepared) - expected).abs().max() / expected.abs().max())
        if not off <= SAME[self._dtype]:
            raise RuntimeError(f"its output is off by {off:g}")


def kept_library(info: ModelInfo, config: EngineConfig) -> Path:
    """The library for a model on this CPU, made now if no earlier start has. Raises FatalModelError."""
    facts = (FORMAT, info.revision, torch.__version__, config.dtype, platform.machine(), _cpu_features())
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    folder = Path(config.cache_dir) / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.glob(f"{key}-*.so"):
            if path.name == _name(key, path):
                break
            log.warning("%s is damaged", path)  # loading it could end the process
            path.unlink()
        else:
            path = _compile(info, config, folder, key)
        found = path.stat()
    except OSError as error:
        raise FatalModelError(f"{folder}: {error.strerror}; compile needs a cache_dir that can be written.") from None
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
        raise FatalModelError(f"{path}: others could have written it, and it would be run; delete it.")
    return path


def _name(key: str, path: Path) -> str:
    return f"{key}-{file_digest(path)[:32]}.so"


def _compile(info: ModelInfo, config: EngineConfig, folder: Path, key: str) -> Path:
    """In a process of its own: the compiler is large, and would keep the engine from answering pings."""
    log.warning("compiling %s for this CPU; that takes a minute or more, once", info.name)
    for left in folder.glob(f"{SCRATCH}*"):
        if time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
        made = Path(scratch) / "made.so"
        run = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "service.engine.compiling", str(made)],
            input=frame(Configure(config, (info,))),
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": scratch, "TMPDIR": scratch},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if run.returncode:
            lines = run.stderr.decode(errors="replace").strip().splitlines()
            for line in lines[-20:]:
                log.error("compiling: %s", line)
            reason = next((line for line in reversed(lines) if "Error" in line or "Compiler" in line), "see the log")
            raise FatalModelError(f"{info.name} cannot be compiled: {reason}")
        made.chmod(0o600)
        return made.replace(folder / _name(key, made))


def _cpu_features() -> str:
    """What the compiler may have used."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")

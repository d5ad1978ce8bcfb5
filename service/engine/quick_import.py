"""Spares an engine's start about a second: diffusers' network without torch's compiler.

`diffusers` imports `torch._dynamo`, a third of all that an engine imports, only to mark functions as off limits
to a compiler that an engine on the CPU never calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

COMPILER = "torch._dynamo"
NETWORK = "diffusers.models.unets.unet_2d"


def import_diffusers_quickly() -> None:
    """Imports diffusers' `UNet2DModel` with the compiler hidden; whoever imports that later gets the real one.

    For a process that has just begun, in its only thread that imports. A diffusers that cannot do without the
    compiler is left to be imported in the usual way.
    """
    if COMPILER in sys.modules or NETWORK in sys.modules:
        return
    import torch.compiler

    before = torch.compiler.disable
    torch.compiler.disable = _unmarked
    sys.modules[COMPILER] = None  # type: ignore[assignment] # importing it is an ImportError now
    try:
        import_module(NETWORK)
    except Exception:  # any: it is another library's code under a condition it was not written for
        for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
            del sys.modules[name]
    finally:
        del sys.modules[COMPILER]
        torch.compiler.disable = before


def _unmarked(fn: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """A decorator, with or without arguments, that does nothing."""
    return fn if fn is not None else lambda fn: fn

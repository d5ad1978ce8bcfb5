"""Spares an engine's start more than a second: diffusers' network without torch's compiler and the other networks.

`diffusers` imports `torch._dynamo`, a third of all that an engine imports, only to mark functions as off limits
to a compiler that an engine on the CPU never calls. And its packages of networks import every network they have
when one is asked for, some eighty transformers among them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
NETWORK = "diffusers.models.unets.unet_2d"
PACKAGES = ("diffusers.models.transformers", "diffusers.models.unets")  # that import all they have


def import_diffusers_quickly() -> None:
    """Imports diffusers' `UNet2DModel` with the rest hidden; whoever imports that later gets the real one.

    For a process that has just begun, in its only thread that imports. A diffusers that cannot do without is left
    to be imported in the usual way.
    """
    if COMPILER in sys.modules or NETWORK in sys.modules:
        return
    import torch.compiler

    before = torch.compiler.disable
    torch.compiler.disable = _unmarked
    sys.modules[COMPILER] = None  # type: ignore[assignment] # importing it is an ImportError now
    try:
        for package in PACKAGES:
            sys.modules[package] = _bare(package)
        import_module(NETWORK)
    except Exception:  # any: it is another library's code under a condition it was not written for
        for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
            del sys.modules[name]
    finally:
        for package in PACKAGES:
            sys.modules.pop(package, None)
        del sys.modules[COMPILER]
        torch.compiler.disable = before


def _bare(package: str) -> ModuleType:
    """A package whose modules can be imported, while its own code does not run."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{package} is no package")
    module = ModuleType(package)
    module.__path__ = spec.submodule_search_locations
    return module


def _unmarked(fn: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """A decorator, with or without arguments, that does nothing."""
    return fn if fn is not None else lambda fn: fn

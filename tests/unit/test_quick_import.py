"""diffusers without torch's compiler and without its other networks, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys

import pytest

QUICKLY = """
import sys, torch
from service.engine.quick_import import import_diffusers_quickly
mark = torch.compiler.disable
import_diffusers_quickly()
assert torch.compiler.disable is mark
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_compiler_is_not_imported_with_the_network_but_can_be_later() -> None:
    run(
        QUICKLY
        + """
assert "diffusers.models.unets.unet_2d" in sys.modules
assert "torch._dynamo" not in sys.modules
import torch._dynamo
assert torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(1)).item() == 1
"""
    )


@pytest.mark.slow
def test_other_networks_are_not_imported_with_the_network_but_can_be_later() -> None:
    run(
        QUICKLY
        + """
assert not [name for name in sys.modules if "flux" in name or "unet_3d" in name]
from diffusers.models.unets.unet_2d import UNet2DModel as quick
from diffusers import FluxTransformer2DModel, UNet2DConditionModel, UNet2DModel
assert UNet2DModel is quick
import diffusers.models.unets
assert diffusers.models.unets.UNet2DModel is quick
"""
    )


def test_a_model_is_loaded_without_the_compiler_too() -> None:
    """Classes have an embedding, and to draw its first weights torch imports its compiler."""
    run(
        QUICKLY
        + """
from service.models.loader import load_unet
from service.models.places import load_infos
(info,) = load_infos("bundled").values()
assert load_unet(info).class_embedding is not None
assert "torch._dynamo" not in sys.modules
"""
    )


@pytest.mark.slow
def test_a_diffusers_that_needs_the_compiler_is_imported_in_the_usual_way() -> None:
    run(
        """
import sys
class NeedsCompiler:
    def find_spec(self, name, path=None, target=None):
        if name == "diffusers.models.unets.unet_2d":
            import torch._dynamo
sys.meta_path.insert(0, NeedsCompiler())
"""
        + QUICKLY
        + """
assert not [name for name in sys.modules if name.startswith("diffusers")]
from diffusers.models.unets.unet_2d import UNet2DModel
assert "torch._dynamo" in sys.modules
"""
    )

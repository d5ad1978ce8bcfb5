"""Loading the network: the same weights as diffusers loads, or one sentence on why not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from service.errors import FatalModelError
from service.models.convert import LAYOUTS
from service.models.folder import load_info
from service.models.loader import load_unet
from service.models.places import load_infos
from service.models.weights import WEIGHTS
from tests.tiny import Layout, save_pipeline, tiny_model


@pytest.mark.parametrize("layout", ["imagenet_like", "lsun_like", "plain"])
def test_loaded_network_is_diffusers_own(tmp_path: Path, layout: Layout) -> None:
    """Weights and outputs equal, bit for bit, those of the pipeline's UNet."""
    from diffusers import ConsistencyModelPipeline

    folder = tiny_model(tmp_path / "m", layout)
    unet = load_unet(load_info(folder, "m"))
    # torch.matmul goes other ways for weights that want gradients, which are other bits on some processors
    reference = ConsistencyModelPipeline.from_pretrained(folder).unet.requires_grad_(False)
    mine = unet.state_dict()
    assert all(torch.equal(weight, mine[name]) for name, weight in reference.state_dict().items())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([1095.5, -100.0])
    labels = None if layout == "lsun_like" else torch.tensor([1, 9])
    with torch.no_grad():
        assert torch.equal(reference(x, time, labels).sample, unet(x, time, labels).sample)


def test_network_is_ready_to_infer(tmp_path: Path) -> None:
    """In float32 also from float16 and bfloat16 files, in eval mode, without gradients, nothing on meta."""
    for dtype in (torch.float16, torch.bfloat16):
        folder = tiny_model(tmp_path / str(dtype))
        path = folder / "unet" / WEIGHTS
        stored = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        save_file(stored, path)
        unet = load_unet(load_info(folder, "m"))
        assert not unet.training
        for name, tensor in unet.state_dict().items():
            assert (torch.float32, "cpu") == (tensor.dtype, tensor.device.type)
            assert torch.equal(stored[name].float(), tensor)
        assert not any(weight.requires_grad for weight in unet.parameters())
        assert not any(buffer.is_meta for buffer in unet.buffers())


@pytest.mark.slow
def test_loading_the_bundled_model_is_silent() -> None:
    """No warning and no line on stdout or stderr, in a process that turns warnings into errors."""
    code = (
        "from service.models.places import load_infos; from service.models.loader import load_unet;"
        "info = load_infos('bundled')['avatars-32']; unet = load_unet(info);"
        "assert sum(p.numel() for p in unet.parameters()) > 8_000_000"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


Tensors = dict[str, torch.Tensor]


def nan(tensors: Tensors) -> Tensors:
    tensors["mid_block.resnets.0.conv1.weight"][3, 2, 1, 1] = torch.nan
    return tensors


def infinity(tensors: Tensors) -> Tensors:
    tensors["conv_out.bias"][0] = -torch.inf
    return tensors


def missing(tensors: Tensors) -> Tensors:
    del tensors["up_blocks.0.resnets.0.conv1.weight"]
    return tensors


def unexpected(tensors: Tensors) -> Tensors:
    return tensors | {"extra.weight": torch.zeros(1)}


def shape(tensors: Tensors) -> Tensors:
    return tensors | {"time_embedding.linear_1.weight": torch.zeros(64, 17)}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (nan, "'mid_block.resnets.0.conv1.weight' has values that are not finite"),
        (infinity, "'conv_out.bias' has values that are not finite"),
        (missing, "'up_blocks.0.resnets.0.conv1.weight' is missing"),
        (unexpected, "'extra.weight' is not part of the network"),
        (shape, r"'time_embedding.linear_1.weight' is \[64, 17\], the network has \[64, 16\]"),
    ],
)
def test_wrong_tensors_are_fatal(tmp_path: Path, damage: Callable[[Tensors], Tensors], reason: str) -> None:
    folder = tiny_model(tmp_path / "m")
    path = folder / "unet" / WEIGHTS
    save_file(damage(load_file(path)), path)
    info = load_info(folder, "m")
    with pytest.raises(FatalModelError, match=reason) as caught:
        load_unet(info)
    assert str(path.parent) in str(caught.value)


def test_a_folder_that_changed_since_the_start_is_fatal(tmp_path: Path) -> None:
    """An engine that comes back never serves other weights under the old revision."""
    info = load_info(tiny_model(tmp_path / "m", seed=0), "m")
    tiny_model(tmp_path / "m", seed=1)
    with pytest.raises(FatalModelError, match="changed since the service started"):
        load_unet(info)


def test_a_network_that_diffusers_cannot_build_is_fatal(tmp_path: Path) -> None:
    """Options that are well-formed, and wrong only together, end in a sentence too."""
    folder = tiny_model(tmp_path / "m")
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"silu"', '"no-such-function"'))
    with pytest.raises(FatalModelError, match=r"config.json: diffusers cannot build this network"):
        load_unet(load_info(folder, "m"))


def test_bundled_model_makes_a_picture() -> None:
    """One network call at sigma_max gives an image that varies and depends on the class."""
    unet = load_unet(load_infos("bundled")["avatars-32"])
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(42)).repeat(2, 1, 1, 1)
    with torch.no_grad():
        images = unet(x, torch.full((2,), 1095.5), torch.tensor([0, 9])).sample / 2
    assert images.isfinite().all()
    assert images[0].std() > 0.2
    assert (images[0] - images[1]).abs().mean() > 0.1


@pytest.mark.slow
def test_imagenet_64_layout_loads_and_runs_full_size(tmp_path: Path) -> None:
    """296 M parameters, 1,000 classes, 64 px, random weights in float16: checked, loaded, one forward."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    config = msgspec.structs.replace(LAYOUTS["imagenet64"], num_class_embeds=1000)
    with torch.device("meta"):
        unet = UNet2DModel(**msgspec.structs.asdict(config)).half()
    unet.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for weight in unet.parameters():
        weight.data.normal_(generator=generator).mul_(1 if weight.ndim == 1 else weight[0].numel() ** -0.5)
    save_pipeline(tmp_path / "big", unet)
    del unet
    info = load_info(tmp_path / "big", "big")
    assert (info.num_classes, info.latent_shape) == (1000, (3, 64, 64))
    loaded = load_unet(info)
    assert round(sum(weight.numel() for weight in loaded.parameters()) / 1e6) == 296
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        output = loaded(x, torch.tensor([1095.5]), torch.tensor([145])).sample
    assert output.shape == x.shape
    assert output.isfinite().all()
    assert output.std() > 0.05

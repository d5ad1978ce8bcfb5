"""Converting original checkpoints: the same network under other names."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from service.errors import FatalModelError
from service.models.convert import LAYOUTS, convert_checkpoint, convert_state, unet_config
from service.models.folder import load_info
from service.models.loader import load_unet
from tests.original_unet import OriginalUNet

TEST_SHAPE: dict[str, Any] = {"channels": [32, 64], "layers": 2, "attention": {1}, "head": 8, "scale_shift": True}


def original(classes: int | None, *, seed: int = 0, **shape: Any) -> OriginalUNet:
    """An original network whose every weight is random (the published ones start with zeros)."""
    network = OriginalUNet(classes=classes, **shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            scale = 1 if weight.ndim == 1 else weight[0].numel() ** 0.5
            weight.copy_(0.1 * noise + 1 if weight.ndim == 1 else noise / scale)
    return network.eval().requires_grad_(False)


def inputs(size: int, classes: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, size, size, generator=generator)
    time = torch.tensor([1095.5066, -1553.652, 80.98])
    return x, time, None if classes is None else torch.tensor([0, classes - 1, 2])


@pytest.mark.parametrize("classes", [7, None])
def test_converted_network_computes_what_the_original_does(tmp_path: Path, classes: int | None) -> None:
    """A converted checkpoint gives the original forward's output to 1e-5."""
    network = original(classes, **TEST_SHAPE)
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    info = convert_checkpoint(tmp_path / "mine.pt", tmp_path / "out", num_train_timesteps=40)
    assert (classes, 32) == (info.num_classes, info.image_size)
    x, time, labels = inputs(32, classes)
    expected = network(x, time, labels)
    actual = load_unet(info)(x, time, labels).sample
    assert expected.std() > 0.1
    assert (expected - actual).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_lsun_arrangement_computes_what_the_original_does() -> None:
    """Levels without attention above levels with it, and time added rather than scaled, convert as well."""
    shape: dict[str, Any] = {"channels": [32, 32, 64, 64], "layers": 2, "attention": {2, 3}, "head": 16}
    network = original(None, scale_shift=False, **shape)
    config = msgspec.structs.replace(
        LAYOUTS["lsun256"],
        sample_size=16,
        block_out_channels=(32, 32, 64, 64),
        attention_head_dim=16,
        down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",) * 2,
    )
    weights = convert_state(Path("x.pt"), network.state_dict(), config)
    unet = UNet2DModel(**msgspec.structs.asdict(config)).eval()
    unet.load_state_dict(weights)
    x, time, _ = inputs(16, None)
    expected = network(x, time)
    with torch.no_grad():
        actual = unet(x, time).sample
    assert (expected - actual).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("layout", "shape", "classes", "millions"),
    [
        (
            "imagenet64",
            {"channels": [192, 384, 576, 768], "layers": 3, "attention": {1, 2, 3}, "scale_shift": True},
            1000,
            296,
        ),
        (
            "lsun256",
            {
                "channels": [256, 256, 512, 512, 1024, 1024],
                "layers": 2,
                "attention": {3, 4, 5},
                "scale_shift": False,
            },
            None,
            526,
        ),
    ],
)
def test_full_size_layouts_fit_tensor_by_tensor(
    layout: str, shape: dict[str, Any], classes: int | None, millions: int
) -> None:
    """Every tensor of both published architectures finds its place, of the same shape, none left over."""
    with torch.device("meta"):
        state = OriginalUNet(classes=classes, head=64, **shape).state_dict()
    config = unet_config(Path("x.pt"), state)
    assert LAYOUTS[layout].block_out_channels == config.block_out_channels  # type: ignore[index]
    assert config.num_class_embeds == classes
    weights = convert_state(Path("x.pt"), state, config)
    assert millions == round(sum(weight.numel() for weight in weights.values()) / 1e6)


@pytest.mark.parametrize(("stem", "scales"), [("cd_imagenet64_l2", 40), ("ct_imagenet64", 201), ("ct_cat256", 151)])
def test_published_file_names_say_the_training_timesteps(tmp_path: Path, stem: str, scales: int) -> None:
    torch.save(original(5, **TEST_SHAPE).state_dict(), tmp_path / f"{stem}.pt")
    info = convert_checkpoint(tmp_path / f"{stem}.pt", tmp_path / "out")
    assert scales == info.schedule.num_train_timesteps


def test_a_thousand_classes_get_imagenet_names(tmp_path: Path) -> None:
    torch.save(original(1000, **TEST_SHAPE).state_dict(), tmp_path / "mine.pt")
    convert_checkpoint(tmp_path / "mine.pt", tmp_path / "out", num_train_timesteps=40)
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["145"] == "king penguin"
    assert load_info(tmp_path / "out", "x").classes[145].slug == "king-penguin"


def test_diffusers_own_pipeline_opens_the_result(tmp_path: Path) -> None:
    from diffusers import ConsistencyModelPipeline

    torch.save(original(5, **TEST_SHAPE).state_dict(), tmp_path / "mine.pt")
    info = convert_checkpoint(tmp_path / "mine.pt", tmp_path / "out", num_train_timesteps=40)
    pipeline = ConsistencyModelPipeline.from_pretrained(info.path)
    mine = load_unet(info).state_dict()
    assert all(torch.equal(weight, mine[name]) for name, weight in pipeline.unet.state_dict().items())


class _Bomb:
    """A pickle that would leave a file behind if its code were run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    """A `.pt` that carries code is refused and its code never runs, whichever way it was saved."""
    mark = tmp_path / "ran"
    torch.save({"input_blocks.0.0.weight": _Bomb(mark)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Bomb(mark), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(FatalModelError, match=f"{name}: is not a checkpoint of plain tensors"):
            convert_checkpoint(tmp_path / name, tmp_path / "out", num_train_timesteps=40)
    assert not mark.exists()


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: _without(state, "out.2.bias"), "does not fit the layout"),
        (lambda state: state | {"extra.weight": torch.zeros(1)}, "does not fit the layout"),
        (lambda state: state | {"out.2.bias": torch.zeros(6)}, "does not fit the layout"),
        (lambda state: state | {"out.2.bias": torch.full((3,), torch.nan)}, "not finite"),
        (lambda state: {"state": state}, "not the state of a network"),
        (lambda state: {"a.weight": torch.zeros(2)}, "not a UNet of openai/consistency_models"),
        (lambda state: {"input_blocks.0.0.weight": torch.zeros(48, 3, 3, 3)}, "width 48"),
    ],
)
def test_a_wrong_checkpoint_leaves_nothing_behind(tmp_path: Path, change: Any, reason: str) -> None:
    torch.save(change(original(5, **TEST_SHAPE).state_dict()), tmp_path / "mine.pt")
    with pytest.raises(FatalModelError, match=reason):
        convert_checkpoint(tmp_path / "mine.pt", tmp_path / "out", num_train_timesteps=40)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pt"]


def test_truncated_missing_and_unnamed_checkpoints_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "ct_cat256.pt"
    torch.save(original(None, **TEST_SHAPE).state_dict(), whole)
    whole.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(FatalModelError, match="not a checkpoint of plain tensors"):
        convert_checkpoint(whole, tmp_path / "out")
    with pytest.raises(FatalModelError, match="is missing"):
        convert_checkpoint(tmp_path / "cd_cat256_l2.pt", tmp_path / "out")
    (tmp_path / "edm_cat256_ema.pt").touch()
    with pytest.raises(FatalModelError, match="number of training timesteps"):
        convert_checkpoint(tmp_path / "edm_cat256_ema.pt", tmp_path / "out")

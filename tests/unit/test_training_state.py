"""Training goes on where it stopped, and ends in a folder that can be served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from service.models.folder import load_info
from tests.plain_avatars import plain_avatars
from training import export, snapper
from training.data import Avatars
from training.distiller import Distiller
from training.network import MovingAverage, build_unet
from training.recipe import CLASSES, PRESETS, Phase
from training.state import save_weights
from training.train import KEEPERS, main
from training.trainer import Trainer

pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Avatars:
    """Twelve plain colours for each class."""
    return plain_avatars(tmp_path_factory.mktemp("data"))


def trainer(phase: Phase, data: Avatars, run: Path) -> Trainer:
    torch.manual_seed(0)
    recipe = PRESETS["smoke"].with_phase(phase, images=64, batch=8, ahead=1)
    if phase == "distill":
        teacher = dict(build_unet(recipe.network).state_dict())
        return Distiller(recipe, data, run, "cpu", bf16=False, compiled=False, teacher=teacher)
    if phase in KEEPERS:
        keeper = KEEPERS[phase](recipe, data, run, "cpu", bf16=False, compiled=False)
        keeper.start_from(build_unet(recipe.network).state_dict())
        return keeper
    return Trainer(recipe, phase, data, run, "cpu", bf16=False)


@pytest.mark.parametrize("phase", ["pretrain", "tune", "distill", "polish", "snap", "adversarial", "finish"])
def test_a_resumed_phase_ends_with_the_same_bits(
    phase: Phase, data: Avatars, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps at once, and two steps, a stop and two more, leave equal weights."""
    for name in ("PRICED_BY", "AHEAD"):
        monkeypatch.setattr(snapper, name, 32)  # fewer pictures than are made before the first step otherwise
    straight = trainer(phase, data, tmp_path)
    losses = [straight.step() for _ in range(4)]
    first = trainer(phase, data, tmp_path)
    broken = [first.step() for _ in range(2)]
    first.save()
    second = trainer(phase, data, tmp_path)
    assert second.resume()
    broken += [second.step() for _ in range(2)]
    assert losses == broken
    for name, value in straight.average.weights.items():
        torch.testing.assert_close(second.average.weights[name], value, rtol=0, atol=0)


def test_a_length_that_was_found_by_the_clock_is_kept(data: Avatars, tmp_path: Path) -> None:
    """So that a stop changes neither the learning rate nor the end."""
    first = trainer("pretrain", data, tmp_path)
    first.set_length(160)
    first.step()
    first.save()
    second = trainer("pretrain", data, tmp_path)
    second.resume()
    assert (second.phase.images, second.learning_rate()) == (160, first.learning_rate())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--preset", "32", "--phase", "grow"], "--preset 32 has no phase grow"),
        (["--preset", "smoke", "--phase", "distill", "--graphs", "--device", "cpu"], "--graphs needs a GPU"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_sentence(
    data: Avatars, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    save_weights(tmp_path / "pretrain.safetensors", dict(build_unet(PRESETS["smoke"].network).state_dict()), {})
    with pytest.raises(SystemExit, match=reason):
        main([*arguments, "--data", str(data.shards[0][0].parent), "--run", str(tmp_path)])


def test_training_lowers_the_loss(data: Avatars, tmp_path: Path) -> None:
    """Thirty steps on one small set bring the denoising loss down by a tenth at least."""
    learner = trainer("pretrain", data, tmp_path)
    learner.phase = PRESETS["smoke"].with_phase("pretrain", batch=16).pretrain
    losses = [learner.step() for _ in range(30)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_the_average_forgets_its_start_soon() -> None:
    """After a jump of the weights the average follows with (1 + n) / (10 + n), not with its ceiling."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    average = MovingAverage(network)
    torch.nn.init.ones_(network.weight)
    average.update(network, ceiling=0.999)
    assert float(average.weights["weight"]) == pytest.approx(1 - 2 / 11)


def test_batches_are_signed_and_labelled(data: Avatars) -> None:
    """Float32 in [-1, 1] and each picture one of its label's own."""
    images, labels = data.batch(20, torch.Generator().manual_seed(0))
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (20, 3, 16, 16))
    for image, label in zip(images, labels.tolist(), strict=True):
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        assert any((pixels == stored).all() for stored in data.images[label])


def test_attributes_are_read_with_their_words(data: Avatars) -> None:
    attribute = data.attributes(2)["hair"]
    assert [attribute.values[code] for code in attribute.codes[:3]] == ["red", "blue", "red"]


@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_an_exported_folder_can_be_served(tmp_path: Path, shard: str) -> None:
    """Whole or split, the service reads its classes and size, and a run's weights are those given, in float16.

    Serving in bfloat16 rounds none of them any more: it leaves normalisations' alone, and others are rounded before.
    """
    torch.manual_seed(1)
    unet = build_unet(PRESETS["smoke"].network)
    expected = {
        name: (value if "norm" in name else value.bfloat16()).half() for name, value in unet.state_dict().items()
    }
    weights, model = tmp_path / "finish.safetensors", tmp_path / "model"
    save_weights(weights, unet.state_dict(), PRESETS["smoke"].as_json())
    export.main(["--preset", "smoke", "--weights", str(weights), "--out", str(model), "--shard", shard])
    info = load_info(model, "smoke")
    assert [c.name for c in info.classes] == list(CLASSES)
    assert (info.image_size, info.schedule.num_train_timesteps) == (16, 40)
    export.main(["--pipeline", str(model), "--out", str(tmp_path / "joined")])
    joined = UNet2DModel.from_pretrained(tmp_path / "joined", subfolder="unet", torch_dtype=torch.float16)
    for name, value in joined.state_dict().items():
        assert torch.equal(expected[name], value)


def test_weights_that_overflow_float16_are_refused(tmp_path: Path) -> None:
    unet = build_unet(PRESETS["smoke"].network)
    torch.nn.init.constant_(unet.conv_out.weight, 1e6)
    with pytest.raises(ValueError, match="not finite"):
        export.save_pipeline(unet, tmp_path)


def test_a_folder_written_again_keeps_its_weights(tmp_path: Path) -> None:
    """Also those that bfloat16 does not hold."""
    unet = build_unet(PRESETS["smoke"].network)
    torch.nn.init.constant_(unet.conv_out.weight, 1 + 2**-10)
    export.save_pipeline(unet, tmp_path / "model")
    export.main(["--pipeline", str(tmp_path / "model"), "--out", str(tmp_path / "again")])
    again = UNet2DModel.from_pretrained(tmp_path / "again", subfolder="unet", torch_dtype=torch.float16)
    assert (again.conv_out.weight == 1 + 2**-10).all()

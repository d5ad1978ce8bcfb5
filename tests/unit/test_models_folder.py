"""What is in a model folder, and every way in which it can be wrong, told without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import FatalModelError
from service.models import revision
from service.models.folder import load_info
from service.models.places import BUNDLED
from tests.tiny import tiny_model, write_json

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("pristine") / "tiny")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own, to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; a value of `...` removes the key."""
    content = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in content.items() if value is not ...})


def test_reading_a_model_imports_no_torch() -> None:
    """Neither torch nor diffusers nor the hub client is imported to check a local model."""
    code = (
        "import sys; from service.models.places import load_infos; load_infos('avatars-32');"
        "print(sorted({'torch', 'diffusers', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_unconditional_and_other_schedules_are_read(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "lsun", "lsun_like", num_train_timesteps=151, scheduler={"sigma_max": 70})
    info = load_info(folder, "lsun")
    assert not info.class_conditional
    assert info.classes == ()
    assert (info.schedule.num_train_timesteps, info.schedule.sigma_max) == (151, 70.0)


UNET, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"

WRONG_VALUES: list[tuple[str, dict[str, Any], str]] = [
    (INDEX, {"_class_name": "DDPMPipeline"}, "must be ConsistencyModelPipeline"),
    (INDEX, {"_class_name": ...}, "must be ConsistencyModelPipeline"),
    (INDEX, {"unet": ["my_module", "UNet2DModel"]}, "custom classes are never run"),
    (INDEX, {"unet": ["diffusers", "UNet2DConditionModel"]}, "`unet` must be"),
    (INDEX, {"unet": ...}, "`unet` must be"),
    (INDEX, {"scheduler": ["scheduling_custom", "CMStochasticIterativeScheduler"]}, "custom classes"),
    (INDEX, {"scheduler": ["diffusers", "DDPMScheduler"]}, "`scheduler` must be"),
    (INDEX, {"vae": ["diffusers", "AutoencoderKL"]}, "'vae' is not part of"),
    (SCHEDULER, {"_class_name": "EulerDiscreteScheduler"}, "CMStochasticIterativeScheduler"),
    (SCHEDULER, {"sigma_min": 0}, "0 < `sigma_min` < `sigma_max`"),
    (SCHEDULER, {"sigma_min": 80, "sigma_max": 0.002}, "0 < `sigma_min` < `sigma_max`"),
    (SCHEDULER, {"sigma_data": -0.5}, "`sigma_data`"),
    (SCHEDULER, {"rho": 0}, "`rho`"),
    (SCHEDULER, {"s_noise": -1}, "`s_noise`"),
    (SCHEDULER, {"num_train_timesteps": 1}, "`num_train_timesteps`"),
    (SCHEDULER, {"num_train_timesteps": 40.5}, "num_train_timesteps"),
    (SCHEDULER, {"num_train_timesteps": True}, "num_train_timesteps"),
    (SCHEDULER, {"sigma_max": "80"}, "sigma_max"),
    (SCHEDULER, {"prediction_type": "sample"}, "'prediction_type' is unknown"),
    (UNET, {"_class_name": "UNet2DConditionModel"}, "must be UNet2DModel"),
    (UNET, {"out_channels": 6}, "also predicts a variance"),
    (UNET, {"in_channels": 4, "out_channels": 4}, "must be 1 .* or 3"),
    (UNET, {"sample_size": ...}, "sample_size"),
    (UNET, {"sample_size": [8, 8]}, "sample_size"),
    (UNET, {"sample_size": 7}, "a multiple of 2"),
    (UNET, {"sample_size": 65536}, "`sample_size` must be 1 to"),
    (UNET, {"time_embedding_type": "fourier"}, "250 ln"),
    (UNET, {"class_embed_type": "timestep"}, "`class_embed_type` must be null"),
    (UNET, {"center_input_sample": True}, "`center_input_sample` must be false"),
    (UNET, {"num_class_embeds": 0}, "`num_class_embeds`"),
    (UNET, {"num_class_embeds": 11}, r"class_embedding.weight' is \[10, 64\] where .* \[11, 64\]"),
    (UNET, {"block_out_channels": [32, 32]}, r"conv_in.weight' is \[16, 3, 3, 3\]"),
    (UNET, {"block_out_channels": [16, 32, 32]}, "equally long"),
    (UNET, {"block_out_channels": []}, "equally long"),
    (UNET, {"block_out_channels": [16, 30]}, "multiples of `norm_num_groups`"),
    (UNET, {"attention_head_dim": 33}, "at most the channels of every block"),
    (UNET, {"layers_per_block": 0}, "must be positive"),
    (UNET, {"down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"]}, "CrossAttnDownBlock2D"),
    (UNET, {"new_option": 1}, "new_option"),
]


@pytest.mark.parametrize(("file", "changes", "reason"), WRONG_VALUES)
def test_wrong_configuration_names_the_file_and_the_reason(
    folder: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    edit(folder / file, **changes)
    with pytest.raises(FatalModelError, match=reason) as caught:
        load_info(folder, "x")
    assert str(caught.value).startswith(str(folder / (WEIGHTS if "weight' is" in reason else file)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", [INDEX, SCHEDULER, UNET])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000, b" " * 2_000_000],
    ids=["empty", "cut", "list", "null", "bytes", "nan", "huge-number", "nested", "too-large"],
)
def test_damaged_json_is_refused(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(FatalModelError, match=file):
        load_info(folder, "x")


@pytest.mark.parametrize("file", [INDEX, SCHEDULER, UNET, WEIGHTS])
def test_missing_files_are_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(FatalModelError, match=f"{file}: is missing"):
        load_info(folder, "x")


@pytest.mark.parametrize("file", [INDEX, SCHEDULER, UNET])
def test_a_pipe_in_place_of_a_configuration_is_refused_and_not_waited_for(folder: Path, file: str) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    with pytest.raises(FatalModelError, match=f"{file}: is not a file"):
        load_info(folder, "x")


def test_a_pipe_in_place_of_the_model_card_is_passed_over(folder: Path) -> None:
    os.mkfifo(folder / "README.md")
    assert load_info(folder, "x").license is None


@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt", "pkl"])
def test_a_pickle_is_refused_even_if_it_is_all_there_is(folder: Path, suffix: str) -> None:
    (folder / WEIGHTS).rename(folder / f"unet/diffusion_pytorch_model.{suffix}")
    with pytest.raises(FatalModelError, match=rf"\.{suffix}: is a pickle"):
        load_info(folder, "x")


def test_code_and_pickles_beside_the_weights_are_left_alone(folder: Path, tmp_path: Path) -> None:
    """Files that are not part of the format change nothing and are not opened."""
    before = load_info(folder, "x")
    bomb = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for name in ("unet/modeling.py", "pipeline.py", "unet/__init__.py"):
        (folder / name).write_text(bomb)
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert before == load_info(folder, "x")
    assert not (tmp_path / "ran").exists()


def test_a_file_and_nothing_are_no_folders(folder: Path) -> None:
    for path in (folder / INDEX, folder / "nowhere"):
        with pytest.raises(FatalModelError, match="is not a folder"):
            load_info(path, "x")


# Revision


def changed_weight(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


CHANGES: list[tuple[Callable[[Path], None], bool]] = [
    (changed_weight, True),
    (lambda folder: edit(folder / UNET, norm_eps=1e-6), True),
    (lambda folder: edit(folder / SCHEDULER, sigma_max=79), True),
    (lambda folder: edit(folder / SCHEDULER, clip_denoised=False), True),
    (lambda folder: write_json(folder / "labels.json", {"0": "cat"}), False),
    (lambda folder: edit(folder / INDEX, id2label={"0": "cat"}), False),
    (lambda folder: (folder / "README.md").write_text("# A model\n") and None, False),
    (lambda folder: os.utime(folder / WEIGHTS, (1, 1)), False),
]


@pytest.mark.parametrize(("change", "matters"), CHANGES)
def test_revision_changes_exactly_with_what_decides_pixels(
    folder: Path, change: Callable[[Path], None], matters: bool
) -> None:
    before = load_info(folder, "x").revision
    change(folder)
    assert matters == (before != load_info(folder, "x").revision)


def test_revision_is_the_same_wherever_the_folder_lies(pristine: Path, folder: Path) -> None:
    assert load_info(pristine, "a").revision == load_info(folder, "b").revision


def test_bundled_revision_is_known() -> None:
    """The revision of given files never changes between releases: it is in ETags and pinned URLs."""
    expected = "sha256:98b6a2863ddc31e58cbd9dc79b063aaee2481f44c6df74b38a836bc7ca99673e"
    assert expected == load_info(BUNDLED / "avatars-32", "x").revision


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Digests are remembered at once, in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(revision, "SETTLED_SECONDS", -1.0)
    return tmp_path / "cache"


def test_a_remembered_digest_spares_the_reading(remembering: Path, folder: Path) -> None:
    """The second look takes the digest from the cache: a forged entry shows that it was used."""
    path = folder / WEIGHTS
    digest = revision.file_digest(path)
    (entry,) = (remembering / "onestep" / "digests").iterdir()
    entry.write_text(entry.read_text().replace(digest, "0" * 64))
    assert revision.file_digest(path) == "0" * 64


def test_a_rewritten_file_is_hashed_again_whatever_its_time_stamp(remembering: Path, folder: Path) -> None:
    path = folder / WEIGHTS
    before, stat = revision.file_digest(path), path.stat()
    changed_weight(folder)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert before != revision.file_digest(path)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"identity":[],"sha256":"xyz"}', b"\xff"])
def test_a_damaged_cache_is_ignored(remembering: Path, folder: Path, content: bytes) -> None:
    digest = revision.file_digest(folder / WEIGHTS)
    (entry,) = (remembering / "onestep" / "digests").iterdir()
    entry.write_bytes(content)
    assert digest == revision.file_digest(folder / WEIGHTS)


def test_a_cache_that_cannot_be_written_does_no_harm(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(revision, "SETTLED_SECONDS", -1.0)
    assert len(revision.file_digest(folder / WEIGHTS)) == 64


def test_a_fresh_file_is_not_remembered(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file written within the last two seconds may change again within one tick of its time stamp."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / WEIGHTS).touch()
    revision.file_digest(folder / WEIGHTS)
    assert not (tmp_path / "cache").exists()

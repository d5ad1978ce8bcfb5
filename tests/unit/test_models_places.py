"""The `model` setting: names, places, folders, and the hub (a real client, a hub on this machine)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.errors import FatalModelError
from service.models.catalog import CATALOG, by_hub_id
from service.models.places import BUNDLED, DEFAULT_MODEL, Place, bundled_names, load_infos, parse_places
from tests.fake_hub import COMMIT, fake_hub
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("bundled", ["avatars-32"]),
        ("avatars-32", ["avatars-32"]),
        (" a=avatars-32 , b=./x ", ["a", "b"]),
        ("/data/My model!", ["My-model"]),
        ("/data/m/", ["m"]),
        ("/data/a=b", ["a-b"]),
        ("openai/diffusers-cd_imagenet64_l2", ["diffusers-cd_imagenet64_l2"]),
        ("openai/diffusers-cd_imagenet64_l2@v1", ["diffusers-cd_imagenet64_l2"]),
        ("me/m@refs/pr/1", ["m"]),
        ("ct-cat256,x=ct-cat256", ["ct-cat256", "x"]),
    ],
)
def test_served_names(setting: str, names: list[str]) -> None:
    assert names == [place.name for place in parse_places(setting)]


def test_bundled_means_the_bundled_default() -> None:
    assert [Place(DEFAULT_MODEL, DEFAULT_MODEL)] == parse_places("bundled")
    assert DEFAULT_MODEL in bundled_names()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("", "empty part"),
        ("a=", "empty part"),
        ("avatars-32,", "empty part"),
        ("=avatars-32", "served name"),
        ("a b=avatars-32", "served name"),
        ("..=avatars-32", "served name"),
        ("/data/!!!", "served name"),
        (f"{'x' * 101}=avatars-32", "served name"),
        ("avatars-32,bundled", "Two models would be served as 'avatars-32'"),
        ("a=./x,a=./y", "Two models"),
    ],
)
def test_wrong_settings_are_refused(setting: str, reason: str) -> None:
    with pytest.raises(FatalModelError, match=reason):
        parse_places(setting)


def test_first_model_is_the_default(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    infos = load_infos(f"{folder},second=bundled")
    assert ["tiny", "second"] == list(infos) == [info.name for info in infos.values()]
    assert [folder, BUNDLED / "avatars-32"] == [info.path for info in infos.values()]


def test_relative_folders_and_bundled_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`avatars-32` is the bundled model even beside a folder of that name, `./avatars-32` is the folder."""
    tiny_model(tmp_path / "avatars-32")
    tiny_model(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert load_infos("avatars-32")["avatars-32"].image_size == 32
    assert load_infos("./avatars-32")["avatars-32"].image_size == 8
    assert load_infos("owner/name")["name"].path == tmp_path / "owner" / "name"


@pytest.mark.parametrize("place", ["no-such-model", "./no-such-folder", "/no/such/folder", "a/b/c", "a/b@"])
def test_unknown_places_are_answered_with_the_known_ones(place: str) -> None:
    with pytest.raises(FatalModelError, match="avatars-32, avatars-64, cd-imagenet64-l2"):
        load_infos(f"x={place}")


def test_a_place_that_cannot_be_looked_at_is_one_sentence() -> None:
    with pytest.raises(FatalModelError, match="cannot be read"):
        load_infos("x=./" + "y" * 300)


def test_catalog_is_consistent() -> None:
    """Short names are the checkpoints' names; schedules are strictly descending, end at 0, lie on the grid."""
    for name, entry in CATALOG.items():
        assert entry.hub_id == "openai/diffusers-" + name.replace("-", "_")
        assert by_hub_id(entry.hub_id) is entry
        assert (entry.num_classes == 1000) == (entry.image_size == 64) == (len(entry.class_names) == 1000)
        if entry.timesteps:
            assert entry.num_train_timesteps > entry.timesteps[0] > entry.timesteps[1] == 0
    assert CATALOG["cd-imagenet64-lpips"].timesteps == (22, 0)
    assert CATALOG["ct-imagenet64"].num_train_timesteps == 201


# The hub. Its client reads its environment when imported, so each case is a process of its own.

PROGRAM = """
import json, sys
from service.errors import FatalModelError
from service.models.places import load_infos
try:
    infos = load_infos(sys.argv[1])
except FatalModelError as error:
    print(json.dumps({"error": str(error)}))
else:
    rows = [[i.name, str(i.path), i.license, [c.name for c in i.classes[:2]]] for i in infos.values()]
    print(json.dumps({"rows": rows, "torch": "torch" in sys.modules}))
"""


def ask(setting: str, home: Path, **environment: str) -> Any:
    """What `load_infos(setting)` says in a fresh process with an own hub cache."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, setting],
        env=clean | {"HF_HOME": str(home), "NO_PROXY": "*", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def put_in_cache(home: Path, hub_id: str, **options: Any) -> Path:
    """Makes a tiny model as the hub client would have left it in its cache."""
    repository = home / "hub" / ("models--" + hub_id.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return tiny_model(repository / "snapshots" / COMMIT, **options)


def test_offline_a_model_comes_from_the_hub_clients_cache(tmp_path: Path) -> None:
    folder = put_in_cache(tmp_path, "me/mine")
    for setting in ("me/mine", "me/mine@main", f"me/mine@{COMMIT}"):
        found = ask(setting, tmp_path, HF_HUB_OFFLINE="1")
        assert [["mine", str(folder), None, ["class 0", "class 1"]]] == found["rows"]
        assert not found["torch"]


def test_published_checkpoints_know_their_classes_and_licence(tmp_path: Path) -> None:
    """By short name and by hub id: ImageNet's names and the licence come from the catalog."""
    folder = put_in_cache(tmp_path, "openai/diffusers-ct_imagenet64", num_class_embeds=1000)
    for setting in ("ct-imagenet64", "ct-imagenet64=openai/diffusers-ct_imagenet64"):
        found = ask(setting, tmp_path, HF_HUB_OFFLINE="1")
        assert [["ct-imagenet64", str(folder), "mit", ["tench", "goldfish"]]] == found["rows"]


def test_what_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    nothing_listens = "http://127.0.0.1:9"
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": nothing_listens}):
        error = ask("me/mine", tmp_path, **environment)["error"]
        assert error.startswith("me/mine: is not in the hub's local cache")
        assert "\n" not in error


def test_a_cached_model_of_pickles_is_refused(tmp_path: Path) -> None:
    unet = put_in_cache(tmp_path, "me/mine") / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    assert "is a pickle" in ask("me/mine", tmp_path, HF_HUB_OFFLINE="1")["error"]


def test_only_weights_and_configuration_are_fetched(tmp_path: Path) -> None:
    """Code, pickles, other variants and pictures on the hub are never downloaded; then it serves offline."""
    folder = tiny_model(tmp_path / "model")
    for extra in ("pipeline.py", "unet/model.py", "unet/diffusion_pytorch_model.bin", "sample.png", "a.pt"):
        (folder / extra).write_text("x")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_text("x")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    home = tmp_path / "home"
    with fake_hub({"me/mine": folder}) as hub:
        found = ask("me/mine@v1", home, HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
    ((name, path, licence, _),) = found["rows"]
    assert (name, licence) == ("mine", "apache-2.0")
    assert Path(path).is_relative_to(home)
    assert sorted(hub.fetched) == [
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert "Bearer hf_secret" in hub.tokens
    assert found == ask("me/mine@v1", home, HF_HUB_OFFLINE="1")


def test_the_hubs_refusals_are_told_apart(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    with fake_hub({"me/mine": folder, "me/gated": folder}, gated=frozenset({"me/gated"})) as hub:
        cases = {"me/other": "does not exist", "me/mine@v9": "has no revision 'v9'", "me/gated": "access"}
        for setting, reason in cases.items():
            assert reason in ask(setting, tmp_path / "home", HF_ENDPOINT=hub.url)["error"]
    assert hub.fetched == []

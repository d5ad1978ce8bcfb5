"""Class names, slugs, and which class a client means."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.diffusion.schedule import NoiseSchedule
from service.errors import FatalModelError, InvalidRequest, UnknownModel
from service.models.catalog import imagenet_classes
from service.models.classes import ClassTable, class_names, class_of_seed, make_classes
from service.models.folder import load_info
from service.models.info import ModelInfo
from tests.tiny import tiny_model, write_json

LOC = ("body", "class_labels")


def table(names: list[str] | None) -> ClassTable:
    """A table for classes of these names, None for an unconditional model."""
    info = ModelInfo(
        name="m",
        path=Path("m"),
        revision="sha256:0",
        image_size=8,
        channels=3,
        num_classes=None if names is None else len(names),
        classes=make_classes(names or []),
        schedule=NoiseSchedule(),
    )
    return ClassTable(info)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("King Penguin", "king-penguin"),
        ("tench, Tinca tinca", "tench"),
        ("jack-o'-lantern", "jack-o-lantern"),
        ("Café au lait", "cafe-au-lait"),
        ("42", "class-0"),
        ("any", "class-0"),
        ("猫", "class-0"),
        ("--", "class-0"),
        ("x" * 150, "x" * 60),
    ],
)
def test_slug_of_a_name(name: str, slug: str) -> None:
    assert slug == make_classes([name])[0].slug


def test_slugs_that_would_meet_all_get_their_index() -> None:
    slugs = [item.slug for item in make_classes(["crane", "Crane", "crane-1", "crane!"])]
    assert slugs == ["crane-0", "crane-1-1", "crane-1", "crane-3"]


@given(st.lists(st.text(min_size=1, max_size=12), max_size=30))
def test_slugs_are_unique_url_parts_and_never_an_index_or_any(names: list[str]) -> None:
    slugs = [item.slug for item in make_classes(names)]
    assert len(set(slugs)) == len(names)
    for slug in slugs:
        assert slug.isascii()
        assert all(character.isalnum() or character == "-" for character in slug)
        assert not slug.isdigit()
        assert slug != "any"


def test_imagenet_has_a_thousand_names() -> None:
    names = imagenet_classes()
    assert (len(names), names[0], names[145], names[999]) == (1000, "tench", "king penguin", "toilet tissue")
    assert len({item.slug for item in make_classes(names)}) == 1000


# In a body


@pytest.mark.parametrize(
    ("value", "index"),
    [(0, 0), (2, 2), ("1", 1), ("01", 1), ("Big Cat", 1), ("big cat", 1), ("BIG-CAT", 1), (" dog ", 2)],
)
def test_body_takes_index_digits_name_or_slug_in_any_case(value: int | str, index: int) -> None:
    assert index == table(["fox", "Big Cat", "dog"]).from_body(value, loc=LOC)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (-1, "class_out_of_range"),
        (3, "class_out_of_range"),
        (10**30, "class_out_of_range"),
        ("3", "class_out_of_range"),
        ("9" * 5000, "class_out_of_range"),
        ("", "unknown_class"),
        ("wolf", "unknown_class"),
        ("²", "unknown_class"),
        ("\u0663", "unknown_class"),
        ("any", "reserved_class"),
        ("ANY", "reserved_class"),
    ],
)
def test_body_refuses_what_is_no_class(value: int | str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        table(["fox", "Big Cat", "dog"]).from_body(value, loc=LOC)
    assert (code, LOC) == (caught.value.code, caught.value.loc)
    assert "wolf" not in caught.value.message
    assert len(caught.value.message) < 200


def test_a_name_of_several_classes_is_answered_with_the_candidates() -> None:
    classes = table(["crane", "dog", "Crane"])
    with pytest.raises(InvalidRequest, match=r"crane-0 \(0\), crane-2 \(2\)") as caught:
        classes.from_body("CRANE", loc=LOC)
    assert caught.value.code == "ambiguous_class"
    assert classes.from_body("crane-2", loc=LOC) == 2


def test_unconditional_model_takes_no_class() -> None:
    with pytest.raises(InvalidRequest) as caught:
        table(None).from_body(0, loc=LOC)
    assert caught.value.code == "unconditional_model"
    assert table(None).from_url("any") is None
    for text in ("0", "dog"):
        with pytest.raises(UnknownModel):
            table(None).from_url(text)


# In a URL


def test_url_takes_index_slug_or_any() -> None:
    classes = table(["fox", "Big Cat", "any"])
    assert [classes.from_url(text) for text in ("1", "big-cat", "class-2", "any")] == [1, 1, 2, None]


@pytest.mark.parametrize("text", ["3", "Big Cat", "BIG-CAT", "", "-1", "9" * 5000, "²", "Any", "1.0"])
def test_url_refuses_everything_else(text: str) -> None:
    with pytest.raises(UnknownModel):
        table(["fox", "Big Cat", "any"]).from_url(text)


def test_class_of_seed_is_the_contracts_rule() -> None:
    digest = hashlib.sha256(b"class:42").digest()
    assert int.from_bytes(digest[:8], "big") % 10 == class_of_seed(42, 10)
    counts = [sum(class_of_seed(seed, 4) == label for seed in range(2000)) for label in range(4)]
    assert min(counts) > 400


# In a folder


def names_in(folder: Path, **defaults: Any) -> list[str]:
    return [item.name for item in load_info(folder, "x", **defaults).classes]


def test_labels_json_goes_before_id2label_before_the_default(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", num_class_embeds=2)
    assert names_in(folder) == ["class 0", "class 1"]
    assert names_in(folder, default_names=["p", "q"]) == ["p", "q"]
    assert names_in(folder, default_names=["only one"]) == ["class 0", "class 1"]
    index = json.loads((folder / "model_index.json").read_text())
    write_json(folder / "model_index.json", index | {"id2label": {"0": "a", "1": "b, bee"}})
    assert names_in(folder, default_names=["p", "q"]) == ["a", "b, bee"]
    write_json(folder / "labels.json", {"1": "y"})
    assert names_in(folder) == ["class 0", "y"]
    write_json(folder / "labels.json", ["x", "y"])
    assert names_in(folder) == ["x", "y"]


@pytest.mark.parametrize(
    "labels",
    [
        "cat",
        7,
        None,
        {"2": "c"},
        {"-1": "c"},
        {"01": "c"},
        {"x": "c"},
        {"9" * 5000: "c"},
        {"0": ""},
        {"0": " "},
        {"0": 3},
        {"0": "a\nb"},
        {"0": "x" * 201},
        ["a", "b", "c"],
    ],
)
def test_labels_that_do_not_fit_the_network_are_refused(labels: object) -> None:
    with pytest.raises(FatalModelError, match=r"labels.json: "):
        class_names(labels, 2, Path("labels.json"))


def test_damaged_labels_name_the_file(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    (folder / "labels.json").write_bytes(b'{"0": "\xff"}')
    with pytest.raises(FatalModelError, match=r"labels.json: is not valid JSON"):
        load_info(folder, "x")


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: mit\n---\n# M", "mit"),
        ('---\ntags: [a]\nlicense: "apache-2.0"\n---', "apache-2.0"),
        ("# M\nlicense: mit\n", None),
        ("---\ntitle: x\n---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_licence_is_the_model_cards(tmp_path: Path, readme: str, licence: str | None) -> None:
    folder = tiny_model(tmp_path / "m")
    (folder / "README.md").write_text(readme)
    assert licence == load_info(folder, "x").license
    assert (licence or "other") == load_info(folder, "x", default_license="other").license

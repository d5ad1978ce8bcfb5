"""Safetensors files judged by their headers: whole or refused, never a crash."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from service.errors import FatalModelError
from service.models.folder import load_info
from service.models.loader import load_unet
from service.models.weights import WEIGHTS, WEIGHTS_INDEX, read_header, weight_files
from tests.tiny import tiny_model, write_json


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.float16)}, path, metadata={"format": "pt"})
    return path


def with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[Any], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_header_says_what_is_in_the_file(weights: Path) -> None:
    tensors = read_header(weights)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {"a": (2, 3), "b": (4,)}
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {"a": "F32", "b": "F16"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated or not a safetensors"),
        (b"1234567", "truncated or not a safetensors"),
        (b"\xff" * 100, "truncated or not a safetensors"),
        ((1000).to_bytes(8, "little") + b"{}", "truncated or not a safetensors"),
        ((2**40).to_bytes(8, "little") + b"{}", "truncated or not a safetensors"),
        ((2).to_bytes(8, "little") + b"{]", "not JSON"),
        ((100_000).to_bytes(8, "little") + b"[" * 100_000, "not JSON"),
        (with_header([]), "not an object"),
        (with_header({"a": entry([2], [0, 8]) | {"dtype": 3}}, b"x" * 8), "damaged"),
        (with_header({"a": entry([-2, -1], [0, 8])}, b"x" * 8), "damaged"),
        (with_header({"a": entry([2.0], [0, 8])}, b"x" * 8), "damaged"),
        (with_header({"a": entry([2], [0])}, b"x" * 8), "damaged"),
        (with_header({"a": {"shape": [2]}}, b"x" * 8), "damaged"),
        (with_header({"a": entry([2], [8, 0])}, b"x" * 8), "does not fit its shape"),
        (with_header({"a": entry([3], [0, 8])}, b"x" * 8), "does not fit its shape"),
        (with_header({"a": entry([2], [4, 12])}, b"x" * 12), "does not fit its shape"),
        (with_header({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, b"x" * 12), "does not fit its shape"),
        (with_header({"a": entry([2**62, 2**62], [0, 8])}, b"x" * 8), "does not fit its shape"),
        (with_header({"a": entry([2], [0, 8])}, b"x" * 7), "is truncated"),
        (with_header({"a": entry([2], [0, 8])}, b"x" * 9), "is damaged"),
        (with_header({"a": entry([2], [0, 16], "I64")}, b"x" * 16), "is I64, not a floating point"),
        (with_header({"a": entry([2], [0, 2], "U8")}, b"x" * 2), "is U8, not a floating point"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(FatalModelError, match=reason) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_noticed(weights: Path) -> None:
    whole = weights.read_bytes()
    for length in range(len(whole)):
        weights.write_bytes(whole[:length])
        with pytest.raises(FatalModelError):
            read_header(weights)


def test_what_the_header_check_accepts_the_real_reader_reads(weights: Path) -> None:
    """2,000 random damages of the header: each is refused, or the tensors it tells of are those torch reads."""
    whole = weights.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(7)
    accepted = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        damaged[rng.randrange(header_end)] = rng.randrange(256)
        weights.write_bytes(damaged)
        try:
            tensors = read_header(weights)
        except FatalModelError:
            continue
        accepted += 1
        try:
            real = load_file(weights)
        except SafetensorError:  # the loader turns this into its own fatal error
            continue
        assert {name: item.shape for name, item in tensors.items()} == {
            name: tuple(tensor.shape) for name, tensor in real.items()
        }
    assert 0 < accepted < 1500


def shard(folder: Path) -> Path:
    """Splits the weights of a model folder in two files with an index, as diffusers does for large models."""
    unet = folder / "unet"
    tensors = load_file(unet / WEIGHTS)
    names = sorted(tensors)
    parts = {
        "diffusion_pytorch_model-00001-of-00002.safetensors": names[::2],
        "diffusion_pytorch_model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, unet / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    write_json(unet / WEIGHTS_INDEX, {"metadata": {}, "weight_map": weight_map})
    (unet / WEIGHTS).unlink()
    return unet


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    one = load_unet(load_info(tiny_model(tmp_path / "one"), "one")).state_dict()
    folder = tiny_model(tmp_path / "two")
    assert len(weight_files(shard(folder))) == 2
    two = load_unet(load_info(folder, "two")).state_dict()
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


def _drop(unet: Path, names: list[str]) -> None:
    (unet / names[0]).unlink()


def _escape(unet: Path, names: list[str]) -> None:
    write_json(unet / WEIGHTS_INDEX, {"weight_map": {"conv_in.weight": "../other.safetensors"}})


def _pickle(unet: Path, names: list[str]) -> None:
    write_json(unet / WEIGHTS_INDEX, {"weight_map": {"conv_in.weight": "diffusion_pytorch_model.bin"}})


def _empty(unet: Path, names: list[str]) -> None:
    write_json(unet / WEIGHTS_INDEX, {"weight_map": {}})


def _twice(unet: Path, names: list[str]) -> None:
    (unet / names[0]).write_bytes((unet / names[1]).read_bytes())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_drop, "is missing, though"),
        (_escape, "may only name safetensors files beside it"),
        (_pickle, "may only name safetensors files beside it"),
        (_empty, "must be an object"),
        (_twice, "is also in"),
    ],
)
def test_wrong_shards_are_refused(tmp_path: Path, damage: Callable[[Path, list[str]], None], reason: str) -> None:
    folder = tiny_model(tmp_path / "tiny")
    unet = shard(folder)
    damage(unet, sorted(path.name for path in unet.glob("*.safetensors")))
    with pytest.raises(FatalModelError, match=reason):
        load_info(folder, "x")

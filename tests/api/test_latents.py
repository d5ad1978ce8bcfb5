"""Latents are read strictly, and reach the engine as the very numbers that were sent."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.latents import read_latents
from service.errors import InvalidRequest
from tests.api.conftest import Stand

SHAPE = (2, 3, 8, 8)
ARRAY = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=True)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def handmade(header: bytes, data: bytes = ARRAY.tobytes(), version: bytes = b"\x01\x00") -> bytes:
    width = 2 if version == b"\x01\x00" else 4
    return b"\x93NUMPY" + version + len(header).to_bytes(width, "little") + header + data


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 8, 8), }"


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions(version: tuple[int, int]) -> None:
    """Every version of the format that numpy writes is read."""
    assert read_latents(text(npy(ARRAY, version)), SHAPE) == [row.tobytes() for row in ARRAY]


def test_fortran_order() -> None:
    """Column-major arrays mean the same numbers."""
    assert read_latents(text(npy(np.asfortranarray(ARRAY))), SHAPE) == [row.tobytes() for row in ARRAY]


def refused(data: str | bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_latents(data if isinstance(data, str) else text(data), SHAPE)
    assert caught.value.loc == ("body", "latents")
    return caught.value.code


WITH_NAN, WITH_INF = ARRAY.copy(), ARRAY.copy()
WITH_NAN[1, 2, 7, 7] = np.nan
WITH_INF[0, 0, 0, 0] = -np.inf


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("", "npy"),
        ("?", "base64"),
        ("é", "base64"),
        (text(npy(ARRAY))[:-1], "base64"),
        (text(npy(ARRAY)) + "\n", "base64"),
        ("A" * 10_000_000, "latents_too_large"),
        (npy(ARRAY[:1]), "latents_shape"),
        (npy(ARRAY.reshape(2, 3, 64)), "latents_shape"),
        (npy(ARRAY.transpose(0, 2, 3, 1).copy()), "latents_shape"),
        (npy(ARRAY.astype(np.float64)[:, :, :, :4]), "latents_dtype"),
        (npy(ARRAY.astype(np.float16)), "latents_dtype"),
        (npy(ARRAY.astype(">f4")), "latents_dtype"),
        (npy(ARRAY.view(np.int32)), "latents_dtype"),
        (npy(np.array([{"a": 1}], dtype=object)), "latents_dtype"),
        (npy(WITH_NAN), "latents_not_finite"),
        (npy(WITH_INF), "latents_not_finite"),
        (npy(ARRAY * np.float32(1000)), "latents_out_of_range"),
        (npy(np.full_like(ARRAY, np.float32(-3e38))), "latents_out_of_range"),
        (npy(ARRAY)[:-1], "latents_size"),
        (npy(ARRAY) + b"x", "latents_size"),
        (npy(ARRAY)[:9], "npy"),
        (npy(ARRAY)[:40], "npy"),
        (b"PK\x03\x04" + npy(ARRAY), "npy"),
        (handmade(HEADER, version=b"\x04\x00"), "npy"),
        (handmade(b"{'descr': '<f4'"), "npy"),
        (handmade(b"[1, 2]"), "npy"),
        (handmade(b"(" * 4000), "npy"),
        (handmade(b"-" * 4000 + b"1"), "npy"),
        (handmade(b"{[]: 1}"), "npy"),
        (handmade(b"__import__('os').system('true')"), "npy"),
        (handmade(HEADER.replace(b"False", b"None")), "npy"),
        (handmade(b"{'descr': '<f4', 'shape': (2, 3, 8, 8)}"), "npy"),
        (handmade(HEADER.replace(b"'<f4'", b"[('a', '<f4')]")), "latents_dtype"),
        (handmade(HEADER.replace(b"(2, 3, 8, 8)", b"(2, 3, 8, -8)")), "latents_shape"),
        (handmade(HEADER.ljust(5000), data=b""), "npy"),
    ],
)
def test_refusals(data: str | bytes, code: str) -> None:
    """Whatever is not exactly the array asked for is refused, with the reason."""
    assert refused(data) == code


@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    """A file with any few bytes changed is read or refused, nothing else."""
    damaged = bytearray(npy(ARRAY))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 140))] = data.draw(st.integers(0, 255))
    try:
        rows = read_latents(text(bytes(damaged)), SHAPE)
    except InvalidRequest:
        return
    assert [len(row) for row in rows] == [768, 768]


@pytest.mark.anyio
async def test_latents_reach_the_engine(client: httpx.AsyncClient, stand: Stand) -> None:
    """Each sample gets its own draw; the picture does not claim that its seed alone makes it."""
    body: dict[str, Any] = {"batch_size": 2, "seed": 5, "latents": text(npy(ARRAY))}
    response = await client.post("/v1/generate", json=body, headers={"accept": "image/png"})
    assert response.status_code == 200
    assert [row.tobytes() for row in ARRAY] == [sample.latents for sample in stand.engine.samples]
    assert [sample.seed for sample in stand.engine.samples] == [5, 6]
    assert b"tEXtlatents" in response.content
    problem = (await client.post("/v1/generate", json={**body, "batch_size": 1})).json()
    assert problem["errors"][0]["code"] in ("latents_shape", "latents_too_large")

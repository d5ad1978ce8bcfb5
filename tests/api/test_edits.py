"""The routes of the edits on a real server with a small model: what they keep, what they refuse, how they answer."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.diffusion.operators.colorize import LUMA
from tests.conftest import Server, StartServer
from tests.hostile_pictures import colourful, encoded
from tests.tiny import tiny_model

SIDE = 16
PICTURE = encoded(colourful(SIDE, SIDE), "PNG")
COLOURS = np.asarray(colourful(SIDE, SIDE))
REPAINT = np.zeros((SIDE, SIDE), bool)
REPAINT[:5, 3:] = True
MASK = encoded(Image.fromarray(REPAINT.astype(np.uint8) * 255), "PNG")
EDITS = ("inpaint", "colorize", "super-resolution", "stroke", "denoise")
EXTRA: dict[str, dict[str, Any]] = {"super-resolution": {"factor": 4}, "denoise": {"sigma": 0.5}}


@pytest.fixture(scope="module")
def edit_server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    tiny = tiny_model(
        folder / "tiny",
        "plain",
        sample_size=SIDE,
        labels={"0": "cat", "1": "dog"} | {str(i): f"class {i}" for i in range(2, 10)},
    )
    grey = tiny_model(folder / "grey", "lsun_like", sample_size=SIDE, in_channels=1, out_channels=1)
    server = start_server("--model", f"{tiny},{grey}", "--log-level", "warning", "--max-client-batch-size", "16")
    yield server
    server.stop()


@pytest.fixture
def client(edit_server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=edit_server.url, trust_env=False, timeout=60) as client:
        yield client


def edit(
    client: httpx.Client,
    name: str,
    request: dict[str, Any] | None = None,
    *,
    image: bytes | None = PICTURE,
    mask: bytes | None = None,
    accept: str = "application/json",
) -> httpx.Response:
    files = {key: (key, data) for key, data in (("image", image), ("mask", mask)) if data is not None}
    fields = EXTRA.get(name, {}) | (request or {})
    if not files:
        files = {"nothing": ("", b"")}
    return client.post(
        f"/v1/edits/{name}", files=files, data={"request": json.dumps(fields)}, headers={"Accept": accept}
    )


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def images(response: httpx.Response) -> list[np.ndarray[Any, Any]]:
    assert response.status_code == 200, response.text
    return [pixels(base64.b64decode(image["b64_json"])) for image in response.json()["images"]]


def errors(response: httpx.Response) -> list[tuple[list[Any], str]]:
    assert response.status_code == 422, response.text
    return [(error["loc"], error["code"]) for error in response.json()["errors"]]


def blocks(picture: np.ndarray[Any, Any], factor: int) -> np.ndarray[Any, Any]:
    count = SIDE // factor
    return picture.reshape(count, factor, count, factor, 3).mean((1, 3))


def test_known_pixels_come_back_exactly(client: httpx.Client) -> None:
    got = images(edit(client, "inpaint", {"batch_size": 3, "seed": 1, "steps": 4}, mask=MASK))
    assert len(got) == 3
    for image in got:
        assert np.array_equal(COLOURS[~REPAINT], image[~REPAINT])
        assert not np.array_equal(COLOURS[REPAINT], image[REPAINT])
    assert not np.array_equal(got[0], got[1])


def test_transparent_pixels_are_the_mask_when_there_is_none(client: httpx.Client) -> None:
    """The picture with holes gives the very bytes that the picture and its mask give."""
    alpha = Image.fromarray(np.where(REPAINT, 0, 255).astype(np.uint8))
    cutout = colourful(SIDE, SIDE)
    cutout.putalpha(alpha)
    request = {"seed": 1, "steps": 2}
    by_alpha = edit(client, "inpaint", request, image=encoded(cutout, "PNG"), accept="image/png")
    by_mask = edit(client, "inpaint", request, mask=MASK, accept="image/png")
    assert by_alpha.status_code == 200
    assert by_mask.content == by_alpha.content


def test_a_mask_of_another_size_is_resized_by_nearest(client: httpx.Client) -> None:
    large = encoded(Image.open(io.BytesIO(MASK)).resize((SIDE * 8, SIDE * 8), Image.Resampling.NEAREST), "PNG")
    request = {"seed": 1, "steps": 2}
    answers = [edit(client, "inpaint", request, mask=mask, accept="image/png").content for mask in (MASK, large)]
    assert answers[0] == answers[1]


def test_luma_is_kept_and_colours_are_made(client: httpx.Client) -> None:
    grey = encoded(colourful(SIDE, SIDE).convert("L"), "PNG")
    kept = pixels(grey) @ np.array(LUMA)
    for image in images(edit(client, "colorize", {"batch_size": 4, "seed": 5, "steps": 3}, image=grey)):
        assert abs(kept - image @ np.array(LUMA)).max() <= 1
        assert np.ptp(image, axis=2).max() > 10


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_block_means_are_kept(client: httpx.Client, factor: int) -> None:
    for image in images(edit(client, "super-resolution", {"factor": factor, "seed": 5, "steps": 3})):
        assert abs(blocks(COLOURS, factor) - blocks(image, factor)).max() <= 1


def enlarged(client: httpx.Client, request: dict[str, Any], image: Image.Image) -> bytes:
    return edit(client, "super-resolution", request, image=encoded(image, "PNG"), accept="image/png").content


def test_a_small_picture_is_taken_as_block_means(client: httpx.Client) -> None:
    """It equals the same picture replicated block by block, whatever `fit` says."""
    small = colourful(4, 4)
    large = small.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    request = {"factor": 4, "seed": 5, "steps": 3}
    answers = [
        edit(
            client, "super-resolution", request | {"fit": fit}, image=encoded(image, "PNG"), accept="image/png"
        ).content
        for image, fit in ((small, "crop"), (small, "exact"), (large, "exact"))
    ]
    assert answers[0] == answers[1] == answers[2]
    assert abs(np.asarray(small) - blocks(pixels(answers[0]), 4)).max() <= 1


def test_strength_decides_how_much_of_a_painting_is_left(client: httpx.Client) -> None:
    near, far = (
        images(edit(client, "stroke", {"strength": strength, "seed": 5, "steps": 1}))[0] for strength in (0.05, 1.0)
    )
    assert abs(COLOURS.astype(int) - near).mean() < 2
    assert abs(COLOURS.astype(int) - far).mean() > 10


def test_stroke_says_which_timesteps_repeat_it(client: httpx.Client) -> None:
    first = edit(client, "stroke", {"strength": 0.6, "seed": 5, "steps": 3})
    assert first.json()["timesteps"] == [32, 24, 16]
    again = edit(client, "stroke", {"timesteps": first.json()["timesteps"], "seed": 5})
    assert first.json()["images"] == again.json()["images"]
    assert errors(edit(client, "stroke", {"timesteps": [16], "strength": 0.6})) == [(["body", "strength"], "conflict")]
    assert errors(edit(client, "stroke", {"strength": 0.05, "steps": 4})) == [(["body", "steps"], "steps_out_of_range")]


def test_denoise_is_one_pass_from_its_sigma(client: httpx.Client) -> None:
    """Hardly any noise leaves the picture as it is; a `.npy` is not noised again."""
    answer = edit(client, "denoise", {"sigma": 0.002, "seed": 1})
    assert abs(COLOURS.astype(int) - images(answer)[0]).max() <= 1
    assert answer.json()["sigmas"] == [0.002]
    assert answer.json()["timesteps"] == []
    assert answer.json()["num_inference_steps"] == 1
    file = io.BytesIO()
    np.save(file, (COLOURS.transpose(2, 0, 1) / 127.5 - 1).astype(np.float32))
    request = {"sigma": 0.5, "batch_size": 2, "class_labels": 1}
    noisy = images(edit(client, "denoise", request, image=file.getvalue()))
    assert np.array_equal(noisy[0], noisy[1])  # seeds have nothing left to draw
    noised = images(edit(client, "denoise", request))
    assert not np.array_equal(noised[0], noised[1])


def test_an_interpolation_ends_at_both_seeds(client: httpx.Client) -> None:
    """In one step its ends are the pictures of the two seeds, and each image says how far along it is."""
    response = client.post("/v1/interpolate", json={"seed_from": 1, "seed_to": 9, "frames": 5, "class_labels": "DOG"})
    frames = images(response)
    assert [image["t"] for image in response.json()["images"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [image["seed"] for image in response.json()["images"]] == [1] * 5
    ends = images(client.post("/v1/generate", json={"seed": [1, 9], "batch_size": 2, "class_labels": 1}))
    assert np.array_equal(ends[0], frames[0])
    assert np.array_equal(ends[1], frames[4])
    assert not np.array_equal(frames[0], frames[2])


def test_the_parts_of_an_interpolation_say_how_far_along_they_are(client: httpx.Client) -> None:
    body = {"seed_from": 1, "seed_to": 9, "frames": 3}
    parts = client.post("/v1/interpolate", json=body, headers={"Accept": "multipart/mixed"})
    assert parts.content.count(b"X-T: 0.5\r\n") == 1
    archive = client.post("/v1/interpolate", json=body, headers={"Accept": "application/zip"})
    manifest = json.loads(zipfile.ZipFile(io.BytesIO(archive.content)).read("manifest.json"))
    assert [image["t"] for image in manifest["images"]] == [0.0, 0.5, 1.0]
    sheet = client.post("/v1/interpolate", json=body, headers={"Accept": "image/png"})
    text = Image.open(io.BytesIO(sheet.content)).info
    assert (text["edit"], text["seed_to"], text["t"]) == ("interpolate", "9", "0.0,0.5,1.0")


@pytest.mark.parametrize("name", EDITS)
def test_json_and_multipart_give_the_same_bytes(client: httpx.Client, name: str) -> None:
    """And a request repeated gives them again; without a class the seed decides."""
    fields = EXTRA.get(name, {}) | {"seed": 3, "num_inference_steps": 1}
    encoded64 = {"image": base64.b64encode(PICTURE).decode(), "mask": base64.b64encode(MASK).decode()}
    if name != "inpaint":
        encoded64.pop("mask")
    as_json = client.post(f"/v1/edits/{name}", json=fields | encoded64)
    as_form = edit(client, name, fields, mask=MASK if name == "inpaint" else None)
    assert as_json.status_code == as_form.status_code == 200
    assert as_json.json()["images"] == as_form.json()["images"]


@pytest.mark.parametrize("name", EDITS)
def test_a_picture_says_which_edit_it_is_and_nothing_of_the_upload(client: httpx.Client, name: str) -> None:
    marked = encoded(colourful(SIDE, SIDE), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0SECRET")
    response = edit(
        client,
        name,
        {"seed": 3, "steps": 1},
        image=marked,
        mask=MASK if name == "inpaint" else None,
        accept="image/png",
    )
    assert response.headers["x-seed"] == "3"
    text = Image.open(io.BytesIO(response.content)).info
    assert text["edit"] == name
    assert b"SECRET" not in response.content
    assert text.get("factor") == ("4" if name == "super-resolution" else None)
    assert text.get("sigma") == ("0.5" if name == "denoise" else None)


def test_the_default_schedule_is_every_grid_point(client: httpx.Client) -> None:
    counts = {}
    for name in EDITS:
        answer = edit(client, name, mask=MASK if name == "inpaint" else None).json()
        counts[name] = (answer["num_inference_steps"], len(answer["sigmas"]))
    assert counts == {
        "inpaint": (40, 40),
        "colorize": (40, 40),
        "super-resolution": (40, 40),
        "stroke": (4, 4),
        "denoise": (1, 1),
    }


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("image/webp", "image/webp"),
        ("multipart/mixed", "multipart/mixed; boundary="),
        ("application/zip", "application/zip"),
        ("application/x-npy", "application/x-npy"),
    ],
)
def test_edits_answer_in_every_form(client: httpx.Client, accept: str, content_type: str) -> None:
    response = edit(client, "colorize", {"batch_size": 2, "steps": 1}, accept=accept)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(content_type)
    assert response.headers["cache-control"] == "no-store"


def test_an_edit_is_streamed_step_by_step(client: httpx.Client) -> None:
    """Previews of an inpaint show the known pixels already; the last event but one is the answer's image."""
    request = {"seed": 1, "steps": 3}
    text = edit(client, "inpaint", request, mask=MASK, accept="text/event-stream").text
    events = [block.split("\n") for block in text.strip().split("\n\n") if block.startswith("event:")]
    names = [lines[0].removeprefix("event: ") for lines in events]
    data = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
    assert names == ["queued", "step", "step", "image", "done"]
    for step in data[1:3]:
        assert np.array_equal(COLOURS[~REPAINT], pixels(base64.b64decode(step["b64_json"]))[~REPAINT])
    whole = edit(client, "inpaint", request, mask=MASK).json()
    assert data[3] == whole["images"][0]


def test_class_names_batches_and_seeds_work_as_in_generation(client: httpx.Client) -> None:
    request = {"batch_size": 2, "class_labels": ["cat", None], "seed": [7, None], "steps": 1}
    answer = edit(client, "stroke", request).json()
    assert answer["images"][0]["class_name"] == "cat"
    assert answer["images"][0]["seed"] == 7
    assert errors(edit(client, "stroke", {"class_labels": "bird"})) == [(["body", "class_labels"], "unknown_class")]


REFUSALS: list[tuple[str, dict[str, Any], list[tuple[list[Any], str]]]] = [
    ("colorize", {"latents": "AAAA"}, [(["body", "latents"], "extra_forbidden")]),
    ("colorize", {"factor": 4}, [(["body", "factor"], "extra_forbidden")]),
    ("colorize", {"fit": "stretch"}, [(["body", "fit"], "literal_error")]),
    ("colorize", {"batch_size": 17}, [(["body", "batch_size"], "batch_size_too_large")]),
    ("colorize", {"steps": 41}, [(["body", "steps"], "steps_out_of_range")]),
    ("colorize", {"model": "grey"}, [(["body", "model"], "not_coloured")]),
    ("colorize", {"model": "nobody"}, [(["body", "model"], "unknown_model")]),
    ("super-resolution", {"factor": 3}, [(["body", "factor"], "factor_does_not_divide")]),
    ("super-resolution", {"factor": 1}, [(["body", "factor"], "greater_than_equal")]),
    ("super-resolution", {"factor": True}, [(["body", "factor"], "int_type")]),
    ("stroke", {"strength": 0}, [(["body", "strength"], "greater_than")]),
    ("stroke", {"strength": 1.01}, [(["body", "strength"], "less_than_equal")]),
    ("stroke", {"strength": "0.5"}, [(["body", "strength"], "float_type")]),
    ("denoise", {"sigma": 81}, [(["body", "sigma"], "sigma_out_of_range")]),
    ("denoise", {"sigma": 0.001}, [(["body", "sigma"], "sigma_out_of_range")]),
    ("denoise", {"timesteps": [0]}, [(["body", "timesteps"], "one_pass")]),
    ("denoise", {"steps": 2}, [(["body", "steps"], "one_pass")]),
    ("denoise", {"sigma": 90, "seed": [1]}, [(["body", "sigma"], "sigma_out_of_range")]),
    ("inpaint", {}, [(["body", "mask"], "mask_missing")]),
    ("stroke", {"fit": "exact", "model": "grey"}, []),
]


@pytest.mark.parametrize(("name", "request_", "expected"), REFUSALS)
def test_refusals_name_the_field(
    client: httpx.Client, name: str, request_: dict[str, Any], expected: list[tuple[list[Any], str]]
) -> None:
    response = edit(client, name, request_)
    assert expected == (errors(response) if expected else [])
    assert expected or response.status_code == 200


def test_files_are_checked_by_their_part(client: httpx.Client) -> None:
    post = client.post
    good = ("a.png", PICTURE)
    assert errors(post("/v1/edits/stroke", files={"mask": good})) == [(["body", "mask"], "extra_forbidden")]
    assert errors(post("/v1/edits/inpaint", files={"mask": good})) == [(["body", "image"], "missing")]
    twice = [("image", good), ("image", good)]
    assert errors(post("/v1/edits/stroke", files=twice)) == [(["body", "image"], "duplicate_key")]
    as_text = {"image": (None, "text"), "request": (None, "{}")}
    assert errors(post("/v1/edits/stroke", files=as_text)) == [(["body", "image"], "file_expected")]
    assert errors(post("/v1/edits/inpaint", files={"image": good, "mask": ("m", b"GIF89a")})) == [
        (["body", "mask"], "image_format")
    ]
    as_file = {"image": good, "request": ("r.json", b'{"steps": 1}', "application/json")}
    assert post("/v1/edits/stroke", files=as_file).status_code == 200
    many = [("image", good)] * 5
    assert errors(post("/v1/edits/stroke", files=many)) == [(["body", "image"], "duplicate_key")] * 4


def test_json_files_are_checked(client: httpx.Client) -> None:
    def refused(image: object) -> list[tuple[list[Any], str]]:
        return errors(client.post("/v1/edits/stroke", json={"image": image}))

    assert refused(None) == [(["body", "image"], "string_type")]
    assert refused(["AAAA"]) == [(["body", "image"], "string_type")]
    assert refused("http://127.0.0.1/a.png") == [(["body", "image"], "base64")]
    assert refused("data:image/png;base64,AAAA") == [(["body", "image"], "base64")]
    assert refused(base64.b64encode(b"GIF89a").decode()) == [(["body", "image"], "image_format")]
    assert errors(client.post("/v1/edits/stroke", json={})) == [(["body", "image"], "missing")]


def test_bodies_of_other_kinds_are_refused(client: httpx.Client) -> None:
    response = client.post("/v1/edits/stroke", content=PICTURE, headers={"Content-Type": "image/png"})
    assert response.status_code == 415
    assert response.headers["accept-post"] == "multipart/form-data, application/json"
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/edits/stroke", content=b"no parts", headers=broken).status_code == 400
    unbounded = {"Content-Type": "multipart/form-data"}
    assert client.post("/v1/edits/stroke", content=b"x", headers=unbounded).status_code == 400
    too_large = {"Content-Type": "application/json"}
    assert client.post("/v1/edits/stroke", content=b" " * (11 * 2**20), headers=too_large).status_code == 413
    assert client.post("/v1/interpolate", files={"image": PICTURE}).status_code == 415
    assert client.post("/v1/edits/stroke?x=1", files={"image": PICTURE}).status_code == 422


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, [(["body", "seed_from"], "missing"), (["body", "seed_to"], "missing")]),
        ({"seed_from": 1, "seed_to": 2, "frames": 1}, [(["body", "frames"], "greater_than_equal")]),
        ({"seed_from": 1, "seed_to": 2, "frames": 65}, [(["body", "frames"], "less_than_equal")]),
        ({"seed_from": 1, "seed_to": 2, "frames": 17}, [(["body", "frames"], "frames_too_large")]),
        ({"seed_from": 1, "seed_to": 2**53}, [(["body", "seed_to"], "less_than_equal")]),
        ({"seed_from": 1, "seed_to": 2, "seed": 3}, [(["body", "seed"], "extra_forbidden")]),
        ({"seed_from": 1, "seed_to": 2, "class_labels": [1]}, [(["body", "class_labels"], "wrong_length")]),
    ],
)
def test_interpolations_are_checked(
    client: httpx.Client, body: dict[str, Any], expected: list[tuple[list[Any], str]]
) -> None:
    assert errors(client.post("/v1/interpolate", json=body)) == expected


def test_a_grey_model_edits_grey_pictures(client: httpx.Client) -> None:
    response = edit(client, "inpaint", {"model": "grey", "seed": 1, "steps": 2}, mask=MASK, accept="image/png")
    got = np.asarray(Image.open(io.BytesIO(response.content)))
    assert np.array_equal(np.asarray(colourful(SIDE, SIDE).convert("L"))[~REPAINT], got[~REPAINT])


def test_the_examples_of_the_reference_can_be_sent(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    ours = [path for path in paths if path.startswith("/v1/edits/") or path == "/v1/interpolate"]
    assert len(ours) == 6
    for path in ours:
        examples = paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for example in examples.values():
            response = client.post(path, json=example["value"])
            assert response.status_code == 200, (path, response.text)

"""From finished pixels to the body of an answer, in threads: Pillow and zlib release the interpreter's lock.

What takes less than a millisecond is done at once: two visits to a thread cost the processor as much.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

import msgspec

from service.api.answers import GenerateAnswer, ImageEntry, Timings
from service.api.encoding import Picture, contact_sheet, encode
from service.api.negotiation import IMAGE_TYPES, AnswerForm, OutputFormat
from service.api.packaging import EncodedImage, multipart_body, npy_body, zip_body
from service.api.planning import Plan
from service.diffusion.operators import AnyEdit, edit_name
from service.engine.request import Preview, Sample, SampleResult

__all__ = ["Finished", "Rendered", "Renderer", "encode_image", "encode_preview", "image_entry", "picture_of"]

P = ParamSpec("P")
R = TypeVar("R")

_AT_ONCE_BYTES: Final = 2**14  # of pixels; up to here a thread costs more than it saves
_PARALLEL_BYTES: Final = 2**19  # below it a second thread does


class Finished(msgspec.Struct, frozen=True):
    """A plan that has run. Times are `time.monotonic()` seconds."""

    plan: Plan
    results: list[SampleResult]
    request_id: str
    arrived: float
    submitted: float

    @property
    def queue_seconds(self) -> float:
        """From submission to the first step."""
        return max(0.0, min(result.started for result in self.results) - self.submitted)

    @property
    def inference_seconds(self) -> float:
        """From the first step to the end of the last."""
        return max(result.finished for result in self.results) - min(result.started for result in self.results)

    def timings(self, encode_seconds: float) -> Timings:
        """Where the time went until now."""
        return Timings(
            queue_ms=_milliseconds(self.queue_seconds),
            inference_ms=_milliseconds(self.inference_seconds),
            encode_ms=_milliseconds(encode_seconds),
            total_ms=_milliseconds(time.monotonic() - self.arrived),
        )


class Rendered(msgspec.Struct, frozen=True):
    """The body of an answer and where the time went."""

    body: bytes
    content_type: str
    timings: Timings

    @property
    def encode_seconds(self) -> float:
        """Time that encoding took."""
        return self.timings["encode_ms"] / 1000


class Renderer:
    """A few threads that encode; what takes less than a millisecond is encoded at once."""

    def __init__(self) -> None:
        self._workers = max(2, min(4, os.cpu_count() or 2))
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="encode")

    def close(self) -> None:
        """Ends the threads; what is queued is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a blocking function in a thread."""
        future = self._threads.submit(function, *args, **kwargs)
        return await asyncio.wrap_future(future)

    async def render(self, finished: Finished, form: AnswerForm) -> Rendered:
        """The answer to a finished plan in the form asked for."""
        began = time.monotonic()
        if _pixel_bytes(finished) <= _AT_ONCE_BYTES:
            images = _encode_some(finished, range(len(finished.results))) if form in _NEEDS_IMAGES else []
            return _render(finished, form, images, began)
        images = await self.images(finished) if form in _NEEDS_IMAGES else []
        return await self.call(_render, finished, form, images, began)

    async def images(self, finished: Finished) -> list[EncodedImage]:
        """Every image of a finished plan as a file, in order; large batches are shared out over the threads."""
        count = len(finished.plan.samples)
        large = _pixel_bytes(finished) >= _PARALLEL_BYTES
        workers = min(self._workers, count) if large else 1
        shares = [range(start, count, workers) for start in range(workers)]
        parts = await asyncio.gather(*(self.call(_encode_some, finished, share) for share in shares))
        return sorted((image for part in parts for image in part), key=lambda image: image.index)


_NEEDS_IMAGES: Final = frozenset({AnswerForm.JSON, AnswerForm.MULTIPART, AnswerForm.ZIP})


def _pixel_bytes(finished: Finished) -> int:
    return sum(len(result.pixels) for result in finished.results)


def picture_of(plan: Plan, sample: Sample, result: SampleResult) -> Picture:
    """A finished sample with what makes it again: nothing of the batch it came in."""
    return Picture(result.pixels, *_size(plan), text=_text(plan, [sample]))


def _size(plan: Plan) -> tuple[int, int, int]:
    channels, height, width = plan.model.latent_shape
    return width, height, channels


def _text(plan: Plan, samples: Sequence[Sample]) -> tuple[tuple[str, str], ...]:
    chunks = [
        ("model", plan.model.name),
        ("revision", plan.model.revision),
        ("seed", ",".join(str(sample.seed) for sample in samples)),
    ]
    if samples[0].class_label is not None:
        chunks.append(("class_label", ",".join(str(sample.class_label) for sample in samples)))
    if plan.timesteps:
        chunks.append(("timesteps", ",".join(map(str, plan.timesteps))))
    if samples[0].latents is not None:
        chunks.append(("latents", "given by the client"))  # so the seed alone does not make this one again
    return (*chunks, *_edit_text(plan, [sample.edit for sample in samples if sample.edit is not None]))


def _edit_text(plan: Plan, edits: Sequence[AnyEdit]) -> Iterator[tuple[str, str]]:
    """Which edit it was and its parameters; those that differ in a sheet, separated by commas."""
    if not edits:
        return
    yield "edit", edit_name(edits[0])
    if not plan.timesteps:  # its one level is no point of the grid
        yield "sigma", repr(plan.sigmas[0])
    for facts in zip(*(edit.facts() for edit in edits), strict=True):
        values = [value for _, value in facts]
        yield facts[0][0], values[0] if len(set(values)) == 1 else ",".join(values)


def encode_image(plan: Plan, index: int, result: SampleResult) -> EncodedImage:
    """Image `index` of a plan as a file. Blocking."""
    sample = plan.samples[index]
    data = encode(picture_of(plan, sample, result), plan.output_format, plan.quality)
    t = None if sample.edit is None else sample.edit.way
    return EncodedImage(index, sample.seed, sample.class_label, plan.output_format, data, t)


def encode_preview(plan: Plan, preview: Preview, output_format: OutputFormat) -> bytes:
    """The denoised estimate of a step as a file; a PNG of it says nothing about itself. Blocking."""
    quality = plan.quality if output_format == plan.output_format else None
    return encode(Picture(preview.pixels, *_size(plan)), output_format, quality)


def _encode_some(finished: Finished, indexes: range) -> list[EncodedImage]:
    return [encode_image(finished.plan, index, finished.results[index]) for index in indexes]


def _render(finished: Finished, form: AnswerForm, images: list[EncodedImage], began: float) -> Rendered:
    """The body of an answer from the encoded images that it needs. Blocking."""
    plan, results = finished.plan, finished.results
    match form:
        case AnswerForm.JSON:
            timings = finished.timings(time.monotonic() - began)
            return Rendered(_json_body(finished, images, timings), "application/json", timings)
        case AnswerForm.IMAGE:
            body, content_type = _image_body(plan, results), IMAGE_TYPES[plan.output_format]
        case AnswerForm.MULTIPART:
            body, content_type = multipart_body(images)
        case AnswerForm.ZIP:
            body, content_type = zip_body(images, _manifest(plan, images)), form.value
        case AnswerForm.NPY:
            width, height, channels = _size(plan)
            body = npy_body([result.pixels for result in results], height, width, channels)
            content_type = form.value
        case AnswerForm.EVENTS:
            raise AssertionError("a stream is no body; see service.api.streaming. This is a bug.")
    return Rendered(body, content_type, finished.timings(time.monotonic() - began))


def _image_body(plan: Plan, results: Sequence[SampleResult]) -> bytes:
    pictures = [picture_of(plan, sample, result) for sample, result in zip(plan.samples, results, strict=True)]
    if len(pictures) == 1:
        return encode(pictures[0], plan.output_format, plan.quality)
    return contact_sheet(pictures, plan.output_format, plan.quality, _text(plan, plan.samples))


def _json_body(finished: Finished, images: Sequence[EncodedImage], timings: Timings) -> bytes:
    plan = finished.plan
    answer = GenerateAnswer(
        id=finished.request_id,
        created=int(time.time()),
        model=plan.model.name,
        revision=plan.model.revision,
        num_inference_steps=len(plan.sigmas),
        timesteps=list(plan.timesteps),
        sigmas=list(plan.sigmas),
        images=[image_entry(plan, image) for image in images],
        timings=timings,
    )
    return msgspec.json.encode(answer)


def image_entry(plan: Plan, image: EncodedImage) -> ImageEntry:
    """What the JSON answer, and an event stream, say of one image."""
    entry = ImageEntry(
        index=image.index,
        seed=image.seed,
        class_label=image.class_label,
        class_name=_class_name(plan, image),
        media_type=IMAGE_TYPES[image.output_format],
        width=plan.model.image_size,
        height=plan.model.image_size,
        b64_json=image.data,
    )
    if image.t is not None:
        entry["t"] = image.t
    return entry


def _class_name(plan: Plan, image: EncodedImage) -> str | None:
    return None if image.class_label is None else plan.model.classes[image.class_label].name


def _manifest(plan: Plan, images: Sequence[EncodedImage]) -> dict[str, object]:
    """What a ZIP archive says about its images; nothing that differs from run to run."""
    return {
        "model": plan.model.name,
        "revision": plan.model.revision,
        "num_inference_steps": len(plan.sigmas),
        "timesteps": plan.timesteps,
        "sigmas": plan.sigmas,
        "images": [
            {
                "index": image.index,
                "file": image.file_name,
                "seed": image.seed,
                "class_label": image.class_label,
                "class_name": _class_name(plan, image),
                "media_type": IMAGE_TYPES[image.output_format],
                "width": plan.model.image_size,
                "height": plan.model.image_size,
                **({} if image.t is None else {"t": image.t}),
            }
            for image in images
        ],
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)

"""What waits for a slow reader of a request's events: all of its images, few of its previews."""

from __future__ import annotations

import asyncio

from service.engine.client import SampleFinished, SamplePreview
from service.engine.job import MAX_PREVIEWS, Job
from service.engine.request import Preview, Sample, SampleResult


def job_of(count: int, steps: int) -> Job:
    samples = [
        Sample(id=i, request=1, client="c", model="m", seed=i, class_label=None, sigmas=(1.0,) * steps)
        for i in range(count)
    ]
    return Job(samples, 0, lambda job: None)


async def read(job: Job) -> list[SampleFinished | SamplePreview]:
    return [event async for event in job.events()]


def test_previews_are_dropped_first_and_images_never() -> None:
    """The newest previews are kept, each after those that came before it and before its image."""
    job = job_of(8, 40)
    for step in range(1, 40):
        for sample in range(8):
            job.previewed(sample, Preview(step, b""))
    for sample in range(8):
        job.finished(sample, SampleResult(b"", 0.0, 0.0))
    events = asyncio.run(read(job))
    previews = [event for event in events if isinstance(event, SamplePreview)]
    assert len(previews) == MAX_PREVIEWS
    assert {event.preview.step for event in previews} == {38, 39}
    assert [event.index for event in events if isinstance(event, SampleFinished)] == [*range(8)]
    assert isinstance(events[0], SamplePreview)


def test_a_replay_repeats_no_preview() -> None:
    """Steps that were shown before the engine died are not shown again, also when they were dropped."""
    job = job_of(1, 5)
    for step in (1, 2):
        job.previewed(0, Preview(step, b"first life"))
    job.replay(whole=False)
    for step in (1, 2, 3):
        job.previewed(0, Preview(step, b"second life"))
    job.finished(0, SampleResult(b"", 0.0, 0.0))
    events = asyncio.run(read(job))
    shown = [event.preview for event in events if isinstance(event, SamplePreview)]
    assert [(preview.step, preview.pixels) for preview in shown] == [
        (1, b"first life"),
        (2, b"first life"),
        (3, b"second life"),
    ]

"""What the metrics show of running and waiting requests."""

from __future__ import annotations

from typing import Any

from service.engine.load import Load


class Told:
    """Keeps what it was told last."""

    def load(self, **counts: int) -> None:
        self.counts = tuple(counts[name] for name in ("requests_running", "requests_waiting", "images_waiting"))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is none of its business")


def test_requests_and_images_are_counted_through_their_lives() -> None:
    """Running requests, waiting requests, waiting images: after each thing that can happen to them."""
    told = Told()
    load = Load(told)

    def counts() -> tuple[int, ...]:
        load.tell()
        return told.counts

    load.left(1, 2)
    load.left(2, 1)
    assert counts() == (0, 2, 3)
    load.begun(10, 1)
    load.begun(10, 1)  # its second step
    load.begun(11, 1)
    assert counts() == (1, 1, 1)
    load.stopped(10)
    load.left(1, 1)
    assert counts() == (1, 1, 1)
    load.stopped(11)  # its engine was lost
    assert counts() == (0, 2, 2)
    load.left(1, 2)  # and its other image is made again
    assert counts() == (0, 2, 3)
    load.begun(20, 2)
    load.stopped(20)
    load.left(2, 0)
    load.left(1, 0)
    load.stopped(99)
    assert counts() == (0, 0, 0)

"""Counts what runs and what waits as it changes: telling costs the same with thousands of requests waiting."""

from __future__ import annotations

from collections import Counter

from service.engine.client import EngineObserver


class Load:
    """Requests and images that are not answered yet, as the metrics show them."""

    def __init__(self, observer: EngineObserver) -> None:
        self._observer = observer
        self._images_left: dict[int, int] = {}  # request -> its images without a result
        self._images = 0  # sum of these
        self._running: dict[int, int] = {}  # sample that has begun -> its request
        self._shares: Counter[int] = Counter()  # request -> how many of its samples run; none is 0

    def left(self, request: int, images: int) -> None:
        """How many images of a request have no result yet; 0 forgets the request."""
        self._images += images - self._images_left.pop(request, 0)
        if images:
            self._images_left[request] = images

    def begun(self, sample: int, request: int) -> None:
        """A sample is in a step; from then on it runs."""
        if sample not in self._running:
            self._running[sample] = request
            self._shares[request] += 1

    def stopped(self, sample: int) -> None:
        """A sample has its result, waits again, or is not wanted any more."""
        request = self._running.pop(sample, None)
        if request is not None:
            self._shares[request] -= 1
            if not self._shares[request]:
                del self._shares[request]

    def tell(self) -> None:
        """Tells the observer."""
        self._observer.load(
            requests_running=len(self._shares),
            requests_waiting=len(self._images_left) - len(self._shares),
            images_waiting=self._images - len(self._running),
        )

"""Every metric of the service, declared once. Label values come from closed sets only.

A `Metrics` has its own registry, so that several apps can live in one process. Buckets are geometric.
"""

from __future__ import annotations

import platform

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.gc_collector import GCCollector

from service import __version__
from service.engine.supervisor import Cause

__all__ = ["EngineMetrics", "Metrics", "geometric"]

PREFIX = "onestep"

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the answer, and nothing asks for them


def geometric(first: float, ratio: float, count: int) -> tuple[float, ...]:
    """`count` bucket bounds, each `ratio` times the one before, rounded to three digits."""
    return tuple(float(f"{first * ratio**i:.3g}") for i in range(count))


LATENCY = geometric(0.005, 2, 17)  # 5 ms .. 328 s: a request, waiting included
SHORT = geometric(0.0005, 2, 16)  # 0.5 ms .. 16 s: one step, encoding
ANSWER = geometric(0.0005, 2, 21)  # 0.5 ms .. 524 s: from one of a probe to one that waited for long
ROWS = geometric(1, 2, 13)  # 1 .. 4096


class Metrics:
    """The counters, gauges and histograms of one service. Base units; counters end in `_total`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests()
        self._work()
        self._engine()
        self._http()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, namespace=PREFIX, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace=PREFIX, buckets=buckets, registry=self.registry)

    def _requests(self) -> None:
        self.requests = self._counter("requests", "Requests for images, by how they ended.", "route", "outcome")
        self.request_failures = self._counter("request_failures", "Refused or failed requests.", "reason")
        self.num_requests_running = self._gauge("num_requests_running", "Requests with an image in a batch.")
        self.num_requests_waiting = self._gauge("num_requests_waiting", "Requests of which no image runs yet.")
        self.num_images_waiting = self._gauge("num_images_waiting", "Images that wait for their first step.")
        self.e2e_request_latency = self._histogram(
            "e2e_request_latency_seconds",
            "From the request's head to the end of its answer.",
            LATENCY,
            "route",
        )
        self.request_queue_time = self._histogram(
            "request_queue_time_seconds", "From admission to the first step.", LATENCY
        )

    def _work(self) -> None:
        self.inference_time = self._histogram(
            "inference_time_seconds", "From a request's first step to the end of its last.", LATENCY
        )
        self.encode_time = self._histogram("encode_time_seconds", "Encoding a request's images.", SHORT)
        self.images = self._counter("images", "Finished images.", "model")
        self.image_steps = self._counter("image_steps", "Images through the network, each step counted.", "model")
        self.batch_size = self._histogram("batch_size", "Real rows of a network forward.", ROWS)
        self.batch_padding = self._counter("batch_padding", "Rows that only filled a batch up.")
        self.step_time = self._histogram(
            "step_time_seconds", "One network forward, by its size with padding.", SHORT, "batch_size"
        )

    def _engine(self) -> None:
        self.engine_ready = self._gauge("engine_ready", "Engines that are loaded, warm and making progress.")
        self.engine_restarts = self._counter("engine_restarts", "Engines that were replaced.", "reason")
        self.response_cache_requests = self._counter(
            "response_cache_requests", "Image URLs asked for, by what the cache knew.", "result"
        )
        self.build_info = Info("build", "Version of the service.", namespace=PREFIX, registry=self.registry)
        self.build_info.info({"version": __version__, "python": platform.python_version()})

    def _http(self) -> None:
        self.http_requests = self._counter("http_requests", "Answers.", "handler", "method", "status")
        self.http_request_duration = self._histogram(
            "http_request_duration_seconds",
            "From a request's head to the end of its answer.",
            ANSWER,
            "handler",
        )


class EngineMetrics:
    """Takes what the engine client observes (`service.engine.client.EngineObserver`) into the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        for cause in Cause:  # a series that begins with its first event is no increase to Prometheus
            metrics.engine_restarts.labels(cause.value)

    def load(self, *, requests_running: int, requests_waiting: int, images_waiting: int) -> None:
        """Requests with a sample that has begun, those without, and samples that have not begun."""
        self._metrics.num_requests_running.set(requests_running)
        self._metrics.num_requests_waiting.set(requests_waiting)
        self._metrics.num_images_waiting.set(images_waiting)

    def step(self, model: str, *, rows: int, size: int, seconds: float) -> None:
        """A forward of `size` rows, of which `rows` were real, took `seconds`."""
        self._metrics.image_steps.labels(model).inc(rows)
        self._metrics.batch_size.observe(rows)
        self._metrics.batch_padding.inc(size - rows)
        self._metrics.step_time.labels(size).observe(seconds)

    def engines_ready(self, count: int) -> None:
        """How many engines can take work."""
        self._metrics.engine_ready.set(count)

    def engine_lost(self, cause: str) -> None:
        """An engine died, hung, went silent, or found its model unservable."""
        self._metrics.engine_restarts.labels(cause).inc()

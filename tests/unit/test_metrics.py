"""The metrics that the contract names, and nothing that could grow without end."""

from __future__ import annotations

import itertools

import pytest
from prometheus_client import generate_latest

from service.metrics import EngineMetrics, Metrics, geometric

# name in the exposition -> labels
CONTRACT = {
    "requests_total": {"route", "outcome"},
    "request_failures_total": {"reason"},
    "num_requests_running": set(),
    "num_requests_waiting": set(),
    "num_images_waiting": set(),
    "e2e_request_latency_seconds": {"route"},
    "request_queue_time_seconds": set(),
    "inference_time_seconds": set(),
    "encode_time_seconds": set(),
    "images_total": {"model"},
    "image_steps_total": {"model"},
    "batch_size": set(),
    "batch_padding_total": set(),
    "step_time_seconds": {"batch_size"},
    "engine_ready": set(),
    "engine_restarts_total": {"reason"},
    "response_cache_requests_total": {"result"},
    "http_requests_total": {"handler", "method", "status"},
    "http_request_duration_seconds": {"handler"},
}


def test_every_metric_of_the_contract_is_there_with_its_labels() -> None:
    registry = Metrics().registry
    collectors = dict(registry._names_to_collectors.items())
    for name, labels in CONTRACT.items():
        assert set(collectors[f"onestep_{name}"]._labelnames) == labels  # type: ignore[attr-defined]
    assert "onestep_build_info" in collectors


def test_every_metric_has_a_sentence() -> None:
    for family in Metrics().registry.collect():
        if family.name.startswith("onestep_"):
            assert family.documentation.endswith("."), family.name


def test_buckets_are_geometric() -> None:
    assert geometric(0.5, 2, 4) == (0.5, 1, 2, 4)
    bounds = geometric(0.0005, 2, 16)
    assert all(later / former == pytest.approx(2, rel=0.01) for former, later in itertools.pairwise(bounds))


def test_what_the_engine_tells_shows_in_the_metrics() -> None:
    metrics = Metrics()
    observer = EngineMetrics(metrics)
    observer.load(requests_running=1, requests_waiting=2, images_waiting=30)
    observer.step("m", rows=3, size=4, seconds=0.02)
    observer.step("m", rows=4, size=4, seconds=0.02)
    observer.engines_ready(2)
    observer.engine_lost("killed")
    text = generate_latest(metrics.registry).decode()
    for line in (
        "onestep_num_requests_running 1.0",
        "onestep_num_requests_waiting 2.0",
        "onestep_num_images_waiting 30.0",
        'onestep_image_steps_total{model="m"} 7.0',
        "onestep_batch_padding_total 1.0",
        "onestep_batch_size_sum 7.0",
        'onestep_step_time_seconds_count{batch_size="4"} 2.0',
        "onestep_engine_ready 2.0",
        'onestep_engine_restarts_total{reason="killed"} 1.0',
    ):
        assert line in text.splitlines()


def test_process_metrics_are_there_and_creation_times_are_not() -> None:
    text = generate_latest(Metrics().registry).decode()
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text

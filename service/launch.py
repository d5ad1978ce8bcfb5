"""From settings to engines: one per device, each with every model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from service.engine.admission import Limits
from service.engine.client import EngineObserver
from service.engine.links import Connect, ProcessLink
from service.engine.pool import EnginePool
from service.engine.protocol import EngineConfig
from service.models.info import ModelInfo
from service.settings import Settings


def make_engine_client(
    settings: Settings,
    infos: Mapping[str, ModelInfo],
    observer: EngineObserver,
    connect: Connect = ProcessLink.connect,
) -> EnginePool:
    """The client of as many engines as the settings name devices; none runs before its `start`."""
    limits = Limits(
        request_timeout=settings.request_timeout,
        max_queue_time=settings.max_queue_time,
        max_client_image_steps=settings.max_client_image_steps,
        engine_restarts=settings.engine_restarts,
    )
    return EnginePool(list(infos.values()), engine_configs(settings), connect, limits, observer)


def engine_configs(settings: Settings) -> list[EngineConfig]:
    """One configuration per device; engines on the CPU share its cores."""
    on_cpu = sum(not device.startswith("cuda") for device in settings.device)
    threads = settings.threads or max(1, usable_cores() // max(1, on_cpu))
    return [
        EngineConfig(
            device=device,
            dtype=settings.dtype,
            threads=threads,
            max_batch_size=settings.max_batch_size,
            max_step_time=settings.max_step_time,
            batch_invariant=settings.batch_invariant,
            cache_dir=str(settings.cache_dir),
            compile=settings.compile,
            log_format=settings.log_format,
            log_level=settings.log_level,
        )
        for device in settings.device
    ]


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and in a container its CPU quota (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *_quota(Path("/sys/fs/cgroup/cpu.max"))])


def _quota(cpu_max: Path) -> Iterable[int]:
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return
    if quota != "max":
        yield max(1, int(quota) // int(period))

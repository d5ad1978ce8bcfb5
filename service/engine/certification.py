"""Finds the ways of running a network in which a row's bits do not depend on the batch, and how long batches take.

Kernels may change with the number of rows and of threads, and then bits change. An anchor, fixed by rule and not by
timing, defines the bits; another way is admitted only if it agrees with the anchor bit for bit, with every probe
row at several places and beside other rows. What was found is kept on disk under the numerics fingerprint.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from service.diffusion.denoiser import denoise
from service.engine.certificates import Certificate, Trial, load, save
from service.engine.lanes import Way
from service.engine.network import Network
from service.engine.protocol import EngineConfig
from service.engine.request import SizeTime
from service.errors import FatalModelError
from service.models.info import ModelInfo

log = logging.getLogger(__name__)

PROBE_ROWS = 8
SLOWER = 1.5  # a size is not timed while its expected step is this many times over `max_step_time`
TIMED_RUNS, MOST_RUNS, TIMED_FOR = 2, 5, 0.03  # so many at least, and at most for so many seconds


class Probe:
    """Rows of fixed seeds at sigmas from end to end, and what the network makes of them in some way."""

    def __init__(self, info: ModelInfo, network: Network) -> None:
        self._schedule = info.schedule
        self._network = network
        steps = info.schedule.num_train_timesteps
        self._sigmas = [info.schedule.sigma_at(i * (steps - 1) // PROBE_ROWS) for i in range(PROBE_ROWS)]
        generator = torch.Generator("cpu").manual_seed(0)
        x = torch.randn((PROBE_ROWS, *info.latent_shape), generator=generator)
        scale = torch.tensor([(s**2 + info.schedule.sigma_data**2) ** 0.5 for s in self._sigmas])
        self._x = (x * scale.view(-1, 1, 1, 1)).to(network.device)
        self._labels = None
        if info.num_classes is not None:
            self._labels = torch.arange(PROBE_ROWS) * 7 % info.num_classes

    def run(self, members: Sequence[int], way: Way | None = None) -> Tensor:
        """x0 estimates of the probe rows `members`; `way` None is as in service."""
        index = torch.tensor(members)
        x, labels = self._x[index.to(self._x.device)], None if self._labels is None else self._labels[index]
        sigmas = [self._sigmas[i] for i in members]

        def network(x: Tensor, time: Tensor, class_labels: Tensor | None, /) -> Tensor:
            if way is None:
                return self._network(x, time, class_labels)
            return self._network.run_as(way, x, time, class_labels)

        return denoise(network, x, sigmas, labels, self._schedule)

    def timed(self, members: Sequence[int]) -> tuple[Tensor, float]:
        """Results as in service, and the seconds until they were there."""
        began = time.perf_counter()
        denoised = self.run(members)
        self._network.mark().wait()
        return denoised, time.perf_counter() - began


def arranged(rows: int, shift: int, stride: int) -> list[int]:
    """Which probe row stands where in a batch of `rows`."""
    return [(shift + i * stride) % PROBE_ROWS for i in range(rows)]


def agrees(members: Sequence[int], results: Tensor, reference: Sequence[Tensor]) -> bool:
    """Whether every row equals its reference bit for bit."""
    return all(torch.equal(row, reference[i]) for i, row in zip(members, results, strict=True))


class OtherBits(RuntimeError):
    """A batch of admitted ways does not have its anchor's bits."""


def certify(
    info: ModelInfo, network: Network, config: EngineConfig, *, trust: bool = True
) -> tuple[Certificate, tuple[SizeTime, ...]]:
    """Admits ways of running, tells the network, and gives the batch sizes with their times.

    Starts from what an earlier start found, if that still holds, unless told not to `trust` it. Bits alone admit a
    way or refuse it, for ever; of times the least ever seen stands. Raises `FatalModelError` when nothing repeats.
    """
    probe = Probe(info, network)
    for anchor in network.anchors:
        reference = list(probe.run(range(PROBE_ROWS), anchor))
        if not all(torch.isfinite(row).all() for row in reference):
            raise FatalModelError(f"{info.name}: its pictures are not finite in {config.dtype}")
        found = fingerprint(info, config, network, anchor, reference)
        known = load(config.cache_dir, found, config.threads) if trust else None
        if known is not None and Trial(anchor, True) not in known.trials:
            known = None  # it says that the anchor has not its own bits
        if known is not None or not config.batch_invariant or _exact(probe, anchor, reference):
            break
    else:
        raise FatalModelError(
            f"{config.device} gives other bits for the same work; set batch_invariant to false to serve without them"
        )
    trials = {trial.way: trial.exact for trial in known.trials} if known else {anchor: True}
    for way in network.candidates:
        if way not in trials:
            trials[way] = _exact(probe, way, reference)
    # what was kept may have larger sizes than there are now
    here = [way for way in trials if way == anchor or way in network.candidates]
    network.admit([way for way in here if trials[way] or not config.batch_invariant])
    times = {time.size: time.seconds for time in known.times} if known else {}
    try:
        if known is not None and config.batch_invariant:
            _check_teams(probe, [way for way in here if trials[way]], reference)
        for size, seconds in _time_sizes(probe, network, config, reference, TIMED_RUNS if known is None else 1):
            times[size] = min(seconds, times.get(size, seconds))
    except OtherBits as error:
        if known is None:
            raise
        log.warning("kept certificate of %s does not hold any more (%s); certifying anew", info.name, error)
        return certify(info, network, config, trust=False)
    certificate = Certificate(
        found,
        tuple(Trial(way, exact) for way, exact in sorted(trials.items())),
        tuple(SizeTime(size, times[size]) for size in sorted(times)),
    )
    if certificate != known:
        save(config.cache_dir, certificate, config.threads)
    sizes = network.sizes(config.max_batch_size)  # a start with more room may have timed larger ones
    return certificate, tuple(
        batch_sizes([time for time in certificate.times if time.size in sizes], network, config.max_batch_size)
    )


def _exact(probe: Probe, way: Way, reference: Sequence[Tensor]) -> bool:
    """Whether every row has its reference's bits this way, wherever it stands."""
    arrangements = ((3, 3), (6, 7)) if way.rows > 1 else ((3, 3),)  # one row has no neighbours
    return all(_agrees_at(probe, way, shift, stride, reference) for shift, stride in arrangements)


def _agrees_at(probe: Probe, way: Way, shift: int, stride: int, reference: Sequence[Tensor]) -> bool:
    rows = PROBE_ROWS - PROBE_ROWS % way.rows if way.rows <= PROBE_ROWS else way.rows
    members = arranged(rows, shift, stride)
    return agrees(members, probe.run(members, way), reference)


def _check_teams(probe: Probe, ways: Iterable[Way], reference: Sequence[Tensor]) -> None:
    """Runs one part in each way with a team: which of them the timed sizes use is a matter of time."""
    for way in ways:
        members = arranged(way.rows, 2, 5)
        if way.threads > 1 and not agrees(members, probe.run(members, way), reference):
            raise OtherBits(f"a row with {way.threads} threads has other bits")


def fingerprint(
    info: ModelInfo, config: EngineConfig, network: Network, anchor: Way, reference: Sequence[Tensor]
) -> str:
    """Numerics fingerprint: what could change a bit, and the anchor's own bits."""
    digest = hashlib.sha256()
    device = torch.device(config.device)
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    )
    facts = (
        *(version("torch"), version("diffusers"), hardware, config.dtype, network.plan, tuple(anchor)),
        *(info.revision, "invariant" if config.batch_invariant else config.threads),
    )
    digest.update(repr(facts).encode())
    for row in reference:
        digest.update(row.cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _time_sizes(
    probe: Probe, network: Network, config: EngineConfig, reference: Sequence[Tensor], runs: int
) -> Iterator[tuple[int, float]]:
    """Least seconds of each size worth knowing, smallest first; their bits are looked at once more."""
    per_row = 0.0
    for size in network.sizes(config.max_batch_size):
        if per_row and per_row * size > SLOWER * config.max_step_time:
            return
        times: list[float] = []
        while len(times) < runs or (1 < runs <= len(times) < MOST_RUNS and sum(times) < TIMED_FOR):
            members = arranged(size, len(times) * 3, (1, 3)[len(times) % 2])
            results, seconds = probe.timed(members)
            times.append(seconds)
            if config.batch_invariant and not agrees(members, results, reference):
                raise OtherBits(f"a batch of {size} has other bits than its parts")
        per_row = min(times) / size if not per_row else min(per_row, min(times) / size)
        yield size, min(times)


def batch_sizes(times: Sequence[SizeTime], network: Network, largest: int) -> Iterator[SizeTime]:
    """Every size of a batch that needs no padding, up to the largest that was timed, ascending, with its time.

    Batches of several rounds are left out: they do no more per second and make others wait longer. Where the largest
    that may be is so small that all need padding, it is the only one.
    """
    most = min(times[-1].size, largest)
    for size in [size for size in range(1, most + 1) if network.padded(size) == size] or [most]:
        # what is between two measured sizes has parts as large as the larger one's
        yield SizeTime(size, next(time.seconds for time in times if time.size >= size))

"""What a run of the load generator found, from one record for each request."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any, Literal

__all__ = ["Latency", "Record", "Result", "percentile"]

OK = "ok"
NOT_SENT = "not sent"


@dataclass(slots=True)
class Record:
    """One request. Times are seconds of one monotonic clock."""

    kind: str
    background: bool
    intended: float  # when it should have been sent
    sent: float
    done: float
    outcome: str  # "ok", or what was wrong: a status such as "503", "timeout", "connection", "bad answer", "not sent"
    images: int = 0
    image_steps: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)  # milliseconds by the server's own account


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed (nearest rank)."""
    return ascending[max(0, ceil(share * len(ascending)) - 1)]


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of times in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, milliseconds: Iterable[float]) -> Latency | None:
        """None when there are no values."""
        values = sorted(milliseconds)
        if not values:
            return None
        p50, p90, p95, p99 = (percentile(values, share) for share in (0.5, 0.9, 0.95, 0.99))
        return cls(len(values), sum(values) / len(values), p50, p90, p95, p99, values[-1])


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Rates are per second of the window after the warm-up.

    `latency`, `failures` and `goodput` are of the requests that should have been sent in the window, whenever they
    were answered; requests, images and image-steps per second are of what was answered in it. Latency is counted
    from when a request should have been sent, and only of right answers. What runs in the background counts in
    images and image-steps only, and in `kinds`; what of it is under way at the end is given up and in no figure.
    """

    workload: str
    loop: Literal["closed", "open"]
    clients: int | None  # of a closed loop
    rate: float | None  # of an open loop: intended requests per second
    seconds: float
    warm_up: float
    deadline: float  # seconds
    sent: int  # requests that should have been sent in the window
    ok: int
    failures: dict[str, int]
    requests_per_second: float
    images_per_second: float
    image_steps_per_second: float
    background_image_steps_per_second: float
    goodput: float  # requests answered rightly within the deadline, per second
    latency: Latency | None
    kinds: dict[str, Latency | None]
    stages: dict[str, Latency | None]  # of the server's own account, and `outside`: the rest of the latency
    send_lag_p99: float  # milliseconds that requests were sent later than intended
    generator_cpu_seconds: float
    server_cpu_seconds: float | None  # of the process tree; None when no pid was given

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `json.dump`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a run was made."""

    workload: str
    clients: int | None
    rate: float | None
    seconds: float
    warm_up: float
    deadline: float
    begin: float  # of the window, on the records' clock
    generator_cpu_seconds: float
    server_cpu_seconds: float | None


def summarize(records: Sequence[Record], run: Conditions) -> Result:
    """The result of a run with these records."""
    end = run.begin + run.seconds
    answered = [each for each in records if each.outcome == OK and run.begin <= each.done < end]
    intended = [each for each in records if run.begin <= each.intended < end]
    front = [each for each in intended if not each.background]
    right = [each for each in front if each.outcome == OK]
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    stages: defaultdict[str, list[float]] = defaultdict(list)
    for each in intended:
        if each.outcome == OK:
            kinds[each.kind].append(_latency(each))
    for each in right:
        for name, milliseconds in each.stages.items():
            stages[name].append(milliseconds)
        if "total" in each.stages:
            stages["outside"].append(_latency(each) - each.stages["total"])
    return Result(
        workload=run.workload,
        loop="open" if run.clients is None else "closed",
        clients=run.clients,
        rate=run.rate,
        seconds=run.seconds,
        warm_up=run.warm_up,
        deadline=run.deadline,
        sent=len(front),
        ok=len(right),
        failures=dict(Counter(each.outcome for each in front if each.outcome != OK)),
        requests_per_second=sum(not each.background for each in answered) / run.seconds,
        images_per_second=sum(each.images for each in answered) / run.seconds,
        image_steps_per_second=sum(each.image_steps for each in answered) / run.seconds,
        background_image_steps_per_second=sum(e.image_steps for e in answered if e.background) / run.seconds,
        goodput=sum(_latency(each) <= 1e3 * run.deadline for each in right) / run.seconds,
        latency=Latency.of(map(_latency, right)),
        kinds={kind: Latency.of(values) for kind, values in sorted(kinds.items())},
        stages={name: Latency.of(values) for name, values in stages.items()},
        send_lag_p99=percentile(sorted(1e3 * (each.sent - each.intended) for each in front), 0.99) if front else 0.0,
        generator_cpu_seconds=run.generator_cpu_seconds,
        server_cpu_seconds=run.server_cpu_seconds,
    )


def _latency(record: Record) -> float:
    """Milliseconds from when it should have been sent."""
    return 1e3 * (record.done - record.intended)

"""From a valid body to the samples the engine is asked for: everything that needs the model or the limits."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import msgspec

from service.api.encoding import MAX_SIDE, effective_quality, sheet_columns
from service.api.latents import read_latents
from service.api.negotiation import AnswerForm, Choice, OutputFormat
from service.api.schemas import GenerateRequest, ImageRequest, SeededRequest, all_of
from service.api.served import ServedModel
from service.engine.request import MAX_SEED, Sample
from service.errors import InvalidRequest, OutOfReach, ServiceError
from service.models.classes import class_of_seed
from service.models.info import ModelInfo

__all__ = [
    "Limits",
    "Plan",
    "Visits",
    "any_class",
    "check_steps",
    "plan_generate",
    "plan_image",
    "plan_images",
    "resolve_timesteps",
    "seeds_of",
    "steps_name",
    "steps_of",
    "visits_of",
    "wrong",
]


class Limits(msgspec.Struct, frozen=True):
    """What the settings allow one request."""

    max_client_batch_size: int
    request_timeout: float  # seconds


class Plan(msgspec.Struct, frozen=True):
    """A request, ready to be submitted, and how its answer is encoded."""

    model: ModelInfo
    timesteps: tuple[int, ...]  # descending, the list that repeats the run
    sigmas: tuple[float, ...]  # in order of visit
    samples: tuple[Sample, ...]
    output_format: OutputFormat
    quality: int | None  # None: lossless
    deadline: float  # time.monotonic() seconds
    bound: tuple[str, ...]  # path of the field that decides whether there is time enough

    def refusal(self, error: OutOfReach, arrived: float) -> ServiceError:
        """What a request that arrived then ends in when it takes longer than is left to it, on an idle server too."""
        timeout = self.deadline - arrived
        if error.seconds <= timeout:
            return error  # it had time enough, and spent it on the way here
        if self.bound[-1] == "timeout":
            return InvalidRequest(
                "Is less than the request takes on an idle server.", loc=self.bound, code="timeout_too_short"
            )
        return InvalidRequest(
            f"Takes longer than a request may here, {timeout:g} seconds.", loc=self.bound, code="takes_too_long"
        )


def resolve_timesteps(
    model: ModelInfo,
    timesteps: Sequence[int] | None,
    num_inference_steps: int,
    *,
    place: str = "body",
    steps_name: str = "num_inference_steps",
) -> tuple[int, ...]:
    """Descending timesteps of a run, given or evenly spaced. Raises `InvalidRequest`."""
    count = model.schedule.num_train_timesteps
    if timesteps is None:
        if not 1 <= num_inference_steps <= count:
            raise InvalidRequest(
                f"Should be from 1 to {count} for this model.",
                loc=(place, steps_name),
                code="steps_out_of_range",
            )
        return tuple(model.schedule.evenly_spaced(num_inference_steps))
    if any(not 0 <= timestep < count for timestep in timesteps):
        raise InvalidRequest(
            f"Each should be from 0 to {count - 1} for this model.",
            loc=(place, "timesteps"),
            code="timesteps_out_of_range",
        )
    if any(later >= earlier for earlier, later in pairwise(timesteps)):
        raise InvalidRequest(
            "Should be strictly descending.", loc=(place, "timesteps"), code="timesteps_not_descending"
        )
    return tuple(timesteps)


class Visits(msgspec.Struct, frozen=True):
    """Which noise levels a run visits."""

    timesteps: tuple[int, ...]  # descending; empty when its one level is no point of the grid
    sigmas: tuple[float, ...]  # in order of visit


def plan_generate(
    body: GenerateRequest, model: ServedModel, limits: Limits, choice: Choice, *, client: str, arrived: float
) -> Plan:
    """The samples of a `POST /v1/generate`.

    `choice` is what `Accept` came to, `client` whom the scheduler should be fair to, `arrived` the
    `time.monotonic()` from which the deadline counts. Raises one `InvalidRequest` with all that is wrong.
    """
    size, info = body.batch_size, model.info

    def latents() -> Sequence[bytes | None]:
        return [None] * size if body.latents is None else read_latents(body.latents, (size, *info.latent_shape))

    return plan_images(
        body,
        model,
        limits,
        choice,
        client=client,
        arrived=arrived,
        count=(size, "batch_size"),
        seeds=lambda: seeds_of(body),
        visits=lambda: visits_of(body, info),
        latents=latents,
    )


def plan_images(
    body: ImageRequest,
    model: ServedModel,
    limits: Limits,
    choice: Choice,
    *,
    client: str,
    arrived: float,
    count: tuple[int, str],
    seeds: Callable[[], list[int]],
    visits: Callable[[], Visits],
    latents: Callable[[], Sequence[bytes | None]] | None = None,
) -> Plan:
    """What generation and every edit have in common; see `plan_generate` for the other arguments.

    `count` is the number of images and the field that says it. What the last three find wrong is told together.
    """
    (size, size_field), info = count, model.info
    if size > limits.max_client_batch_size:  # before anything is made of that length
        raise wrong(size_field, f"{size_field}_too_large", f"Should be at most {limits.max_client_batch_size}.")
    errors: list[InvalidRequest] = []
    with _collecting(errors):
        visited = visits()
    with _collecting(errors):
        found = seeds()
        labels = _labels(body.class_labels, found, size_field, model, errors)
    with _collecting(errors):
        timeout = _timeout(body.timeout, limits)
    with _collecting(errors):
        _check_encoding(body, size, size_field, info, choice)
    first_draws: Sequence[bytes | None] = [None] * size
    with _collecting(errors):
        if latents is not None:
            first_draws = latents()
    if errors:
        raise all_of(errors)

    deadline = arrived + timeout
    samples = tuple(
        Sample(
            id=0,
            request=0,
            client=client,
            model=info.name,
            seed=seed,
            class_label=label,
            sigmas=visited.sigmas,
            pixels="float32" if choice.form is AnswerForm.NPY else "uint8",
            latents=first_draw,
            preview_every=body.callback_steps if choice.form is AnswerForm.EVENTS else 0,
            deadline=deadline,
        )
        for seed, label, first_draw in zip(found, labels, first_draws, strict=True)
    )
    return Plan(
        info,
        visited.timesteps,
        visited.sigmas,
        samples,
        choice.output_format,
        effective_quality(choice.output_format, body.quality),
        deadline,
        ("body", steps_name(body) if body.timeout is None else "timeout"),
    )


def visits_of(body: ImageRequest, model: ModelInfo, default_steps: int = 1) -> Visits:
    """The levels that `timesteps`, `num_inference_steps` or `steps` ask for. Raises `InvalidRequest`."""
    check_steps(body)
    timesteps = resolve_timesteps(model, body.timesteps, steps_of(body, default_steps), steps_name=steps_name(body))
    return Visits(timesteps, model.schedule.sigmas(timesteps))


def steps_of(body: ImageRequest, default: int) -> int:
    """How many evenly spaced steps a body asks for, `default` when it does not say."""
    if body.steps is not None:
        return body.steps
    return body.num_inference_steps if "num_inference_steps" in body.model_fields_set else default


def steps_name(body: ImageRequest) -> str:
    """The name that a body uses for its steps."""
    if body.timesteps is not None:
        return "timesteps"
    return "num_inference_steps" if body.steps is None else "steps"


@contextmanager
def _collecting(errors: list[InvalidRequest]) -> Iterator[None]:
    """Puts what the block finds wrong into the list and goes on."""
    try:
        yield
    except InvalidRequest as error:
        errors.append(error)


def wrong(field: str, code: str, message: str) -> InvalidRequest:
    """The refusal of one field of the body."""
    return InvalidRequest(message, loc=("body", field), code=code)


def check_steps(body: ImageRequest) -> None:
    """Raises `InvalidRequest` when a body says twice which steps it wants."""
    given = body.model_fields_set & {"num_inference_steps", "steps"}
    if len(given) == 2:
        raise wrong("steps", "conflict", "Give either steps or num_inference_steps, not both.")
    if given and body.timesteps is not None:
        raise wrong("timesteps", "conflict", "Give either timesteps or num_inference_steps, not both.")


def seeds_of(body: SeededRequest) -> list[int]:
    """One seed an image; null is drawn at random, low enough for all that count from it."""
    seed, size = body.seed, body.batch_size
    if isinstance(seed, list):
        if len(seed) != size:
            raise wrong("seed", "wrong_length", f"A list should have batch_size ({size}) items.")
        return [secrets.randbelow(MAX_SEED + 1) if item is None else item for item in seed]
    last_start = MAX_SEED - (size - 1)
    if seed is None:
        seed = secrets.randbelow(last_start + 1)
    if seed > last_start:
        raise wrong("seed", "seed_out_of_range", f"The seed of the last image would exceed {MAX_SEED}.")
    return list(range(seed, seed + size))


def _labels(
    labels: int | str | list[int | str | None] | None,
    seeds: list[int],
    size_field: str,
    model: ServedModel,
    errors: list[InvalidRequest],
) -> list[int | None]:
    """One class index an image; None only on an unconditional model."""
    if isinstance(labels, list):
        if len(labels) != len(seeds):
            raise wrong("class_labels", "wrong_length", f"A list should have {size_field} ({len(seeds)}) items.")
        located: list[tuple[int | str | None, tuple[str | int, ...]]] = [
            (label, ("body", "class_labels", index)) for index, label in enumerate(labels)
        ]
    else:
        located = [(labels, ("body", "class_labels"))]
    found: list[int | None] = []
    for label, loc in located:
        with _collecting(errors):
            found.append(None if label is None else model.classes.from_body(label, loc=loc))
    if errors:
        return []
    if not isinstance(labels, list):
        found *= len(seeds)
    return [any_class(model.info, seed) if label is None else label for label, seed in zip(found, seeds, strict=True)]


def any_class(model: ModelInfo, seed: int) -> int | None:
    """The class that "any" means for a seed; None on an unconditional model."""
    return None if model.num_classes is None else class_of_seed(seed, model.num_classes)


def _timeout(timeout: float | None, limits: Limits) -> float:
    if timeout is None:
        return limits.request_timeout
    if timeout > limits.request_timeout:
        raise wrong("timeout", "timeout_too_long", f"Should be at most {limits.request_timeout:g} seconds.")
    return timeout


def _check_encoding(body: ImageRequest, size: int, size_field: str, model: ModelInfo, choice: Choice) -> None:
    if body.quality is not None and choice.output_format == "png":
        raise wrong("quality", "quality_of_lossless", "Only jpeg and webp have a quality.")
    if choice.form is AnswerForm.IMAGE:
        side = model.image_size * sheet_columns(size)
        if side > MAX_SIDE[choice.output_format]:
            raise wrong(size_field, "sheet_too_large", f"A {choice.output_format} file holds no sheet of this size.")


def plan_image(
    model: ModelInfo,
    class_label: int | None,
    seed: int,
    timesteps: tuple[int, ...],
    output_format: OutputFormat,
    quality: int | None,
    *,
    client: str,
    deadline: float,
    bound: tuple[str, ...],
) -> Plan:
    """The one sample of an image URL; `class_label` is already resolved, `bound` is as in the plan."""
    sigmas = model.schedule.sigmas(timesteps)
    sample = Sample(
        id=0,
        request=0,
        client=client,
        model=model.name,
        seed=seed,
        class_label=class_label,
        sigmas=sigmas,
        deadline=deadline,
    )
    quality = effective_quality(output_format, quality)
    return Plan(model, timesteps, sigmas, (sample,), output_format, quality, deadline, bound)

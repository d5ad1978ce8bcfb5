"""Runs one model: rows of state, one network forward for a batch of them, pixels out.

State is float32 always; the network call alone may run in another dtype. On a GPU nothing here waits for the
device but what `mark` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.diffusion.denoiser import denoise
from service.diffusion.noise import NoiseSource
from service.diffusion.operators import Operator
from service.diffusion.sampling import first_state, operate, renoise
from service.diffusion.transfer import upload
from service.engine.batching import BatchSize, padded
from service.engine.collecting import Collected
from service.engine.lanes import Place
from service.engine.network import Mark, Network
from service.engine.request import Pixels, Sample, SizeTime
from service.engine.times import StepTimes
from service.models.info import ModelInfo


@dataclass(slots=True)
class Row:
    """A running sample's tensors: all that persists between its steps."""

    sample: Sample
    noise: NoiseSource
    x: Tensor  # float32 [1, C, H, W] on the device; after the last step the image in [-1, 1]
    step: int = 0  # steps done, or asked for
    operator: Operator | None = None  # of an edit that keeps something of a picture
    started: float = 0.0  # when its first step began, of the monotonic clock; 0.0 until that is over


class ModelRunner:
    """One model on one device. `times` are the admitted sizes and how long a step of each takes."""

    def __init__(
        self, info: ModelInfo, network: Network, batch_sizes: Sequence[SizeTime], max_step_time: float
    ) -> None:
        self.info = info
        self.network = network
        self.times = StepTimes(batch_sizes)
        self._batch_size = BatchSize(self.times, max_step_time)

    def choose(self, ready: int, free: int = 1) -> Place:
        """What the next step gets when `ready` rows and `free` lanes wait.

        A lane's share of a batch is as large as if all others took as much.
        """
        place = self.network.lanes.place(ready, free) if self.network.lanes else None
        if place is None:
            batch = self._batch_size.choose(-(-ready // free) * self.beside)
            place = Place(max(1, batch // self.beside))
        return place

    def expected(self, rows: int, place: Place) -> tuple[int, float]:
        """Rows of a forward for `rows` in a place, padding included, and how long it takes at present."""
        beside = self.beside // place.lanes
        times = self.times.now
        batch = padded(min(rows * beside, times[-1].size), times)
        return max(rows, batch.size // beside), batch.seconds

    def observe(self, place: Place, batch: int, seconds: float) -> None:
        """Notes how long a step in a place took, as long as a batch of so many takes on the whole device."""
        self.times.observe(batch, seconds)
        if self.network.lanes:
            self.network.lanes.observe(place, seconds)

    @property
    def beside(self) -> int:
        """How many steps run side by side; 1 on a device that queues them."""
        return self.network.lanes.count if self.network.lanes else 1

    def begin(self, samples: Sequence[Sample]) -> list[Row]:
        """Draws samples' latents; from here on they own tensors."""
        return self.network.map(self._begin, samples)

    def _begin(self, sample: Sample) -> Row:
        shape = self.info.latent_shape
        noise = NoiseSource(sample.seed, shape)
        if sample.latents is None:
            latents = noise.draw()
        else:
            latents = torch.frombuffer(bytearray(sample.latents), dtype=torch.float32).view(1, *shape)
        x = first_state(sample.edit, latents, sample.sigmas[0], self.info.schedule)
        x = upload(x, self.network.device)
        return Row(sample, noise, x, operator=None if sample.edit is None else sample.edit.operator(x))

    def step(self, rows: Sequence[Row]) -> Tensor:
        """Takes every row one step further in one forward; returns the x0 estimates `[len(rows), C, H, W]`."""
        schedule = self.info.schedule
        x = torch.cat([row.x for row in rows])
        sigmas = [row.sample.sigmas[row.step] for row in rows]
        denoised = denoise(self.network, x, sigmas, self._labels(rows), schedule)
        denoised = operate(denoised, [row.operator for row in rows])
        going_on = [i for i, row in enumerate(rows) if row.step + 1 < len(row.sample.sigmas)]
        x = denoised
        if going_on:
            noise = torch.cat(self.network.map(lambda i: rows[i].noise.draw(), going_on))
            sigmas_next = [rows[i].sample.sigmas[rows[i].step + 1] for i in going_on]
            places = upload(torch.tensor(going_on), x.device)
            renoised = renoise(denoised[places], upload(noise, x.device), sigmas_next, schedule)
            x = denoised.index_copy(0, places, renoised)
        for row, state in zip(rows, x.unbind(), strict=True):
            row.x = state[None]
            row.step += 1
            if row.operator is not None and row.step == len(row.sample.sigmas):
                row.x = row.operator.pull_in(row.x)
        return denoised

    def mark(self) -> Mark:
        """When the device has done what `step` asked for so far."""
        return self.network.mark()

    def collect(self, images: Sequence[Tensor], kinds: Sequence[Pixels]) -> Collected:
        """Starts to take images `[C, H, W]` in [-1, 1] off the device."""
        return Collected(images, kinds, self.network.copy_out)

    def _labels(self, rows: Sequence[Row]) -> Tensor | None:
        if not self.info.class_conditional:
            return None
        return torch.tensor([row.sample.class_label for row in rows])

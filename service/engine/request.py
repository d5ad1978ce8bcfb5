"""What passes between the HTTP process and an engine: samples in, pixels out. No torch, no HTTP."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from service.diffusion.operators import AnyEdit

Pixels = Literal["uint8", "float32"]

MAX_SEED: Final = 2**53 - 1  # the largest integer that JavaScript keeps exact


class Sample(msgspec.Struct, kw_only=True):
    """One image to make: a few numbers until it runs. Everything that decides its pixels is in here."""

    id: int  # unique in one HTTP process; given by the client on submission
    request: int  # samples of one request share it
    client: str  # whom to be fair to
    model: str
    seed: int  # 0 .. MAX_SEED
    class_label: int | None  # None only on an unconditional model
    sigmas: tuple[float, ...]  # in order of visit, float64
    pixels: Pixels = "uint8"
    latents: bytes | None = None  # float32 [C, H, W], C order, little-endian, unit variance
    edit: AnyEdit | None = None  # what makes an edit of a run; samples with and without share forwards
    preview_every: int = 0  # 0: no previews, else a Preview after every so many steps (never the last)
    deadline: float | None = None  # time.monotonic() seconds, one clock for all processes of a machine
    request_steps: int = 1  # image-steps of the whole request; given by the client on submission
    isolated: bool = False  # a suspect of an engine's death: shares a batch with its own request only


class SampleResult(msgspec.Struct, frozen=True):
    """A finished image. `pixels` is uint8 or float32 (in [0, 1]) `[H, W, C]`, C order, little-endian."""

    pixels: bytes
    started: float  # time.monotonic() when its first step began
    finished: float  # time.monotonic() when its last step ended


class Preview(msgspec.Struct, frozen=True):
    """The denoised estimate after `step` (1-based) steps: uint8 `[H, W, C]`."""

    step: int
    pixels: bytes


class SizeTime(msgspec.Struct, frozen=True):
    """One admitted batch size and the seconds that a step of it took at certification."""

    size: int
    seconds: float


class ModelStatus(msgspec.Struct, frozen=True):
    """What an engine found out about a model while warming up."""

    name: str
    fingerprint: str  # numerics fingerprint: equal fingerprints give equal bits
    device: str
    dtype: str
    batch_sizes: tuple[SizeTime, ...]  # ascending by size

"""Messages between an engine and its client, and their framing: length-capped msgpack, no pickle.

A frame is a 4-byte big-endian length and that many bytes of msgpack. The engine gets `Configure` first.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from service.engine.request import ModelStatus, Preview, Sample, SampleResult
from service.models.info import ModelInfo

MAX_FRAME_BYTES = 256 * 2**20
HEADER = struct.Struct(">I")


class EngineConfig(msgspec.Struct, frozen=True):
    """How an engine runs its models on its device."""

    device: str  # "cpu", "cuda:0"; "auto" is the first GPU, else the CPU
    dtype: str  # "float32", "bfloat16", "float16"; "auto" is float32 on the CPU, bfloat16 on a GPU
    threads: int  # of an engine on a CPU: cores it may use
    max_batch_size: int
    max_step_time: float  # seconds
    batch_invariant: bool
    cache_dir: str  # where certifications and compiled networks are kept
    compile: bool = False  # the network, for this CPU
    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: str = "info"


class Configure(msgspec.Struct, frozen=True, tag=True):
    """First message: load these models and get ready."""

    config: EngineConfig
    models: tuple[ModelInfo, ...]


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Samples to run; they are ready at once."""

    samples: tuple[Sample, ...]


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Samples nobody wants any more; unknown ids are passed over."""

    samples: tuple[int, ...]


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answered by `Pong` without waiting for a step."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The engine process is alive (its steps have their own progress deadline)."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Every model is loaded, certified and warm."""

    models: tuple[ModelStatus, ...]


class StepStarted(msgspec.Struct, frozen=True, tag=True):
    """These samples are in the next forward: suspects, should the engine die before that is over.

    Others may start before it ends: on a GPU the next one, on a CPU one on every core.
    """

    model: str
    samples: tuple[int, ...]
    expected: float  # seconds, by the certification


class StepEnded(msgspec.Struct, frozen=True, tag=True):
    """The forward is over; each of its samples has made one step."""

    model: str
    samples: tuple[int, ...]
    size: int  # rows of the forward, padding included
    seconds: float
    batch: int  # rows that the whole device has when all of it does such forwards: the size whose time this is


class Finished(msgspec.Struct, frozen=True, tag=True):
    """A sample's last step is done."""

    sample: int
    result: SampleResult


class Previewed(msgspec.Struct, frozen=True, tag=True):
    """A sample's denoised estimate after one of its steps."""

    sample: int
    preview: Preview


class Expired(msgspec.Struct, frozen=True, tag=True):
    """Samples whose deadline passed before their next step; they were dropped."""

    samples: tuple[int, ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A sample that ended without a picture, and why."""

    sample: int
    reason: str


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The engine can never serve this model; it exits after this message."""

    reason: str


class Crashed(msgspec.Struct, frozen=True, tag=True):
    """A fault while it loaded or stepped; the engine exits after this message and is replaced."""

    reason: str


ToEngine = Configure | Submit | Cancel | Ping
FromEngine = Pong | Ready | StepStarted | StepEnded | Finished | Previewed | Expired | Failed | Fatal | Crashed


class Emit(Protocol):
    """Where an engine's messages go."""

    def __call__(self, *messages: FromEngine) -> None:
        """Hands messages over, in this order; together they wake the client once."""


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"cannot send a {type(value).__name__}")


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"cannot receive a {kind.__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)
_to_engine = msgspec.msgpack.Decoder(ToEngine, dec_hook=_decode_path)
_from_engine = msgspec.msgpack.Decoder(FromEngine, dec_hook=_decode_path)


def frame(message: ToEngine | FromEngine) -> bytes:
    """A message ready for the socket. Raises ValueError when it is too long."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a {type(message).__name__} of {len(body)} bytes is over {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body


def body_length(header: bytes) -> int:
    """Length of the body that a frame's 4-byte header announces. Raises ValueError when it is over the cap."""
    length: int = HEADER.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes is over {MAX_FRAME_BYTES}")
    return length


def decode_to_engine(body: bytes) -> ToEngine:
    """A message from the client. Raises `msgspec.MsgspecError` when it is none."""
    message: ToEngine = _to_engine.decode(body)
    return message


def decode_from_engine(body: bytes) -> FromEngine:
    """A message from an engine. Raises `msgspec.MsgspecError` when it is none."""
    message: FromEngine = _from_engine.decode(body)
    return message

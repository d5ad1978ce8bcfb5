"""What an answer says: whether it is right, how much work it stands for, and where its time went."""

from __future__ import annotations

from typing import Final

import msgspec

from service.bench.connection import Answer
from service.bench.workloads import Call

__all__ = ["image_steps", "read", "stages"]

PNG: Final = "iVBORw0KGgo"  # a PNG's first bytes in base64


class _Image(msgspec.Struct):
    b64_json: str


class Body(msgspec.Struct):
    """The fields of a JSON answer that are looked at; other servers may know only the first."""

    images: list[_Image]
    timesteps: list[int] | None = None
    timings: dict[str, float] | None = None


_DECODER: Final = msgspec.json.Decoder(Body)


def read(call: Call, answer: Answer) -> Body | None:
    """The body of an answer with status 200; None unless it holds as many PNGs as were asked for."""
    try:
        body = _DECODER.decode(answer.body)
    except msgspec.DecodeError:
        return None
    right = len(body.images) == call.images and all(image.b64_json.startswith(PNG) for image in body.images)
    return body if right else None


def image_steps(call: Call, body: Body) -> int:
    """Images times the steps that the server says it made, else that were asked for."""
    return call.image_steps if body.timesteps is None else call.images * len(body.timesteps)


def stages(answer: Answer, body: Body) -> dict[str, float]:
    """Milliseconds by the server's own account: its `timings`, else its `Server-Timing` header, else nothing."""
    if body.timings is not None:
        return {name.removesuffix("_ms"): value for name, value in body.timings.items()}
    return server_timing(answer.headers.get("server-timing", ""))


def server_timing(header: str) -> dict[str, float]:
    """The durations of a `Server-Timing` header; what has none, or is malformed, is left out."""
    found = {}
    for metric in header.split(","):
        name, *parameters = (part.strip() for part in metric.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            try:
                if key.strip().lower() == "dur":
                    found[name] = float(value.strip().strip('"'))
            except ValueError:
                continue
    return found

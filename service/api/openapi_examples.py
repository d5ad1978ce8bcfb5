"""An example of each successful answer in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["add_examples"]

# A picture of 2 x 2 pixels, so that every example is a file that can be opened.
PICTURE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFUlEQVR4nGP4z8DwHwgZGBgY/v//DwAm+wX7dSsPGQAAAABJRU5ErkJggg=="
)
REVISION: Final = "sha256:98b6a2863ddc31e58cbd9dc79b063aaee2481f44c6df74b38a836bc7ca99673e"
TIMINGS: Final = {"queue_ms": 1.2, "inference_ms": 18.0, "encode_ms": 0.3, "total_ms": 20.1}
IMAGE: Final = {
    "index": 0,
    "seed": 42,
    "class_label": 9,
    "class_name": "thumbs",
    "media_type": "image/png",
    "width": 32,
    "height": 32,
    "b64_json": PICTURE,
}
GENERATION: Final = {
    "id": "req_01J9ZKQ0T4S8V6W2X1Y3A5B7C9",
    "created": 1790000000,
    "model": "avatars-32",
    "revision": REVISION,
    "num_inference_steps": 2,
    "timesteps": [22, 0],
    "sigmas": [80.0, 1.382],
    "images": [IMAGE],
    "timings": TIMINGS,
}
MODEL: Final = {
    "id": "avatars-32",
    "object": "model",
    "created": 1790000000,
    "owned_by": "onestep",
    "revision": REVISION,
    "image_size": 32,
    "channels": 3,
    "class_conditional": True,
    "classes": [{"index": 9, "name": "thumbs", "slug": "thumbs"}],
    "num_train_timesteps": 40,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "device": "cpu",
    "dtype": "float32",
    "batch_sizes": [{"size": 4, "step_seconds": 0.021}],
    "license": "CC0-1.0",
}
OPENAI_IMAGES: Final = {
    "created": 1790000000,
    "background": "opaque",
    "output_format": "png",
    "size": "32x32",
    "data": [{"b64_json": PICTURE, "seed": 42, "class_label": 9, "class_name": "thumbs"}],
    "usage": {
        "input_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "output_tokens": 0,
        "total_tokens": 0,
    },
    "model": "avatars-32",
    "revision": REVISION,
    "timesteps": [22, 0],
    "timings": TIMINGS,
}
EVENTS: Final = """\
event: queued
data: {"position":0}

event: step
data: {"index":0,"step":1,"num_inference_steps":2,"b64_json":"iVBOR..."}

event: image
data: {"index":0,"seed":42,"class_label":9,"class_name":"thumbs","media_type":"image/png","width":32,"height":32,\
"b64_json":"iVBOR..."}

event: done
data: {"timings":{"queue_ms":1.2,"inference_ms":18.0,"encode_ms":0.3,"total_ms":20.1}}

"""
OPENAI_EVENTS: Final = """\
event: {prefix}.partial_image
data: {{"type":"{prefix}.partial_image","partial_image_index":0,"b64_json":"iVBOR..."}}

event: {prefix}.completed
data: {{"type":"{prefix}.completed","seed":42,"b64_json":"iVBOR..."}}

"""
METRICS: Final = """\
# HELP onestep_engine_ready Engines that are loaded, warm and making progress.
# TYPE onestep_engine_ready gauge
onestep_engine_ready 1.0
"""

BY_ID: Final[dict[str, object]] = {
    **dict.fromkeys(
        ("generate", "inpaint", "colorize", "super_resolution", "stroke", "denoise", "interpolate"), GENERATION
    ),
    "list_models": {"object": "list", "data": [MODEL]},
    "get_model": MODEL,
    "create_image": OPENAI_IMAGES,
    "create_image_edit": OPENAI_IMAGES,
    "livez": {"status": "alive"},
    "readyz": {"status": "ready"},
    "healthz": {"status": "ready"},
}
STREAMS: Final = {
    "create_image": OPENAI_EVENTS.format(prefix="image_generation"),
    "create_image_edit": OPENAI_EVENTS.format(prefix="image_edit"),
}
STATUS: Final = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}},
}


def add_examples(operation: dict[str, Any]) -> None:
    """Adds an example to each form of an operation's success."""
    name, success = operation["operationId"], operation["responses"]["200"]
    content = success.setdefault("content", {})
    if name == "metrics":
        text = {"schema": {"type": "string"}, "example": METRICS}
        success["content"] = {"text/plain": text, "application/openmetrics-text": text}
        return
    if name in ("livez", "readyz", "healthz"):
        content["application/json"]["schema"] = STATUS
    if name in BY_ID:
        content["application/json"]["example"] = BY_ID[name]
    if "text/event-stream" in content:
        content["text/event-stream"]["example"] = STREAMS.get(name, EVENTS)

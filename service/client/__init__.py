"""A typed client of a Onestep service, for programs that wait and for `asyncio`.

    from service.client import Client

    with Client("http://127.0.0.1:8000") as client:
        picture = client.generate(class_labels="thumbs", seed=42)[0].image  # Pillow

It needs `httpx`, `msgspec` and Pillow, and imports nothing of the service itself.
"""

from service.client._answers import (
    BatchSize,
    Done,
    Event,
    GeneratedImage,
    Generation,
    Model,
    ModelClass,
    Queued,
    Step,
    Timings,
)
from service.client._async_client import AsyncClient
from service.client._client import Client
from service.client._errors import (
    ApiError,
    AuthenticationFailed,
    ConnectionFailed,
    DeadlineExceeded,
    FieldError,
    InvalidAnswer,
    InvalidRequest,
    NotFound,
    OnestepError,
    QuotaExceeded,
    Unavailable,
)
from service.client._operations import ImageInput
from service.client._retries import Retries

__all__ = [
    "ApiError",
    "AsyncClient",
    "AuthenticationFailed",
    "BatchSize",
    "Client",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Done",
    "Event",
    "FieldError",
    "GeneratedImage",
    "Generation",
    "ImageInput",
    "InvalidAnswer",
    "InvalidRequest",
    "Model",
    "ModelClass",
    "NotFound",
    "OnestepError",
    "Queued",
    "QuotaExceeded",
    "Retries",
    "Step",
    "Timings",
    "Unavailable",
]

"""The client for programs that wait."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self, Unpack

import httpx
from PIL import Image

from service.client import _operations as operations
from service.client._answers import Event, Generation, Model, ModelList, decode, etag_of, open_image
from service.client._errors import ConnectionFailed, error_of_answer
from service.client._events import EventReader
from service.client._operations import (
    EditFields,
    EditName,
    GenerateFields,
    ImageFields,
    ImageInput,
    InterpolateFields,
    Operation,
)
from service.client._retries import DEFAULT_RETRIES, Retries
from service.client._settings import BROKE_OFF, DEFAULT_URL, JSON, STREAM, address, default_headers, timeouts

__all__ = ["Client"]


class Client:
    """A connection to one service; `AsyncClient` is the same for `asyncio`. Every call raises `OnestepError`s.

        with Client("http://127.0.0.1:8000") as client:
            client.generate(class_labels="thumbs", seed=42)[0].image.show()

    `timeout` is how long, in seconds, the service may be silent; `transport` replaces the network, for tests.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 330.0,
        retries: Retries = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._http = httpx.Client(
            base_url=address(base_url),
            headers=default_headers(api_key, headers),
            timeout=timeouts(timeout),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self._http.base_url}>"

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def generate(self, **fields: Unpack[GenerateFields]) -> Generation:
        """Makes images."""
        return decode(self._send(operations.generate(fields)), Generation)

    @contextmanager
    def stream(self, **fields: Unpack[GenerateFields]) -> Iterator[Iterator[Event]]:
        """Makes images and tells how they come about: `with client.stream(seed=1) as events:`.

        Leaving the block early cancels what is left.
        """
        with self._events(operations.generate(fields)) as events:
            yield events

    def edit(
        self, edit: EditName, image: ImageInput, *, mask: ImageInput | None = None, **fields: Unpack[EditFields]
    ) -> Generation:
        """Edits a picture; a mask is for `inpaint`, white is repainted."""
        return decode(self._send(operations.edit(edit, image, mask, fields)), Generation)

    @contextmanager
    def stream_edit(
        self, edit: EditName, image: ImageInput, *, mask: ImageInput | None = None, **fields: Unpack[EditFields]
    ) -> Iterator[Iterator[Event]]:
        """Edits a picture as `edit` does, and tells its way as `stream` does."""
        with self._events(operations.edit(edit, image, mask, fields)) as events:
            yield events

    def interpolate(self, seed_from: int, seed_to: int, **fields: Unpack[InterpolateFields]) -> Generation:
        """Makes the images between those of two seeds."""
        return decode(self._send(operations.interpolate(seed_from, seed_to, fields)), Generation)

    def image(self, model: str, class_label: int | str, seed: int, **fields: Unpack[ImageFields]) -> Image.Image:
        """One image by its URL, which caches on the way may have; `class_label` is an index, a slug or `any`."""
        return open_image(self._send(operations.get_image(model, class_label, seed, fields), accept="*/*"))

    def image_etag(self, model: str, class_label: int | str, seed: int, **fields: Unpack[ImageFields]) -> str:
        """The ETag of an image, without making it: equal ETags, equal bytes."""
        operation = operations.get_image(model, class_label, seed, fields, method="HEAD")
        return etag_of(self._open(operation, "*/*", stream=False).headers)

    def image_url(self, model: str, class_label: int | str, seed: int, **fields: Unpack[ImageFields]) -> str:
        """The URL of an image. Asks nobody."""
        return str(self._request(operations.get_image(model, class_label, seed, fields), "*/*").url)

    def models(self) -> tuple[Model, ...]:
        """Every served model, the default first."""
        return decode(self._send(operations.list_models()), ModelList).data

    def model(self, name: str) -> Model:
        """One served model."""
        return decode(self._send(operations.one_model(name)), Model)

    def ready(self) -> bool:
        """Whether the service can take work now. Never tries twice."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.RequestError as error:
            raise ConnectionFailed(str(error) or type(error).__name__) from error

    def _request(self, operation: Operation, accept: str) -> httpx.Request:
        return self._http.build_request(
            operation.method,
            operation.path,
            params=operation.query or None,
            headers=operation.headers(accept),
            content=operation.content(),
        )

    def _send(self, operation: Operation, accept: str = JSON) -> bytes:
        return self._open(operation, accept, stream=False).content

    def _open(self, operation: Operation, accept: str, *, stream: bool) -> httpx.Response:
        """A successful answer, read to its end unless it is a stream."""
        attempt = 0
        while True:
            request = self._request(operation, accept)
            try:
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                response.read()
            except httpx.RequestError as error:
                wait = self._retries.after_failure(attempt, error)
                if wait is None:
                    raise ConnectionFailed(str(error) or type(error).__name__) from error
            else:
                refusal = error_of_answer(response.status_code, response.headers, response.content)
                wait = self._retries.after_refusal(attempt, refusal)
                if wait is None:
                    raise refusal
            time.sleep(wait)
            attempt += 1

    @contextmanager
    def _events(self, operation: Operation) -> Iterator[Iterator[Event]]:
        response = self._open(operation, STREAM, stream=True)
        try:
            yield self._read(response)
        finally:
            response.close()

    @staticmethod
    def _read(response: httpx.Response) -> Iterator[Event]:
        reader = EventReader()
        try:
            for line in response.iter_lines():
                event = reader.feed(line)
                if event is not None:
                    yield event
        except httpx.RequestError as error:
            raise ConnectionFailed(str(error) or type(error).__name__) from error
        if not reader.complete:
            raise ConnectionFailed(BROKE_OFF)

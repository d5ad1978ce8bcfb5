"""The client for `asyncio`. Each method is `Client`'s; what they share is in the other files of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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

__all__ = ["AsyncClient"]


class AsyncClient:
    """A connection to one service; `Client` is the same for programs that wait, and says more of each call.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        generation = await client.generate(class_labels="thumbs", seed=42)
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 330.0,
        retries: Retries = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=address(base_url),
            headers=default_headers(api_key, headers),
            timeout=timeouts(timeout),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._http.base_url}>"

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    async def generate(self, **fields: Unpack[GenerateFields]) -> Generation:
        """Makes images."""
        return decode(await self._send(operations.generate(fields)), Generation)

    @asynccontextmanager
    async def stream(self, **fields: Unpack[GenerateFields]) -> AsyncIterator[AsyncIterator[Event]]:
        """Makes images and tells how they come about: `async with client.stream(seed=1) as events:`.

        Leaving the block early cancels what is left.
        """
        async with self._events(operations.generate(fields)) as events:
            yield events

    async def edit(
        self, edit: EditName, image: ImageInput, *, mask: ImageInput | None = None, **fields: Unpack[EditFields]
    ) -> Generation:
        """Edits a picture; a mask is for `inpaint`, white is repainted."""
        return decode(await self._send(operations.edit(edit, image, mask, fields)), Generation)

    @asynccontextmanager
    async def stream_edit(
        self, edit: EditName, image: ImageInput, *, mask: ImageInput | None = None, **fields: Unpack[EditFields]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Edits a picture as `edit` does, and tells its way as `stream` does."""
        async with self._events(operations.edit(edit, image, mask, fields)) as events:
            yield events

    async def interpolate(self, seed_from: int, seed_to: int, **fields: Unpack[InterpolateFields]) -> Generation:
        """Makes the images between those of two seeds."""
        return decode(await self._send(operations.interpolate(seed_from, seed_to, fields)), Generation)

    async def image(self, model: str, class_label: int | str, seed: int, **fields: Unpack[ImageFields]) -> Image.Image:
        """One image by its URL, which caches on the way may have; `class_label` is an index, a slug or `any`."""
        return open_image(await self._send(operations.get_image(model, class_label, seed, fields), accept="*/*"))

    async def image_etag(self, model: str, class_label: int | str, seed: int, **fields: Unpack[ImageFields]) -> str:
        """The ETag of an image, without making it: equal ETags, equal bytes."""
        operation = operations.get_image(model, class_label, seed, fields, method="HEAD")
        return etag_of((await self._open(operation, "*/*", stream=False)).headers)

    def image_url(self, model: str, class_label: int | str, seed: int, **fields: Unpack[ImageFields]) -> str:
        """The URL of an image. Asks nobody."""
        return str(self._request(operations.get_image(model, class_label, seed, fields), "*/*").url)

    async def models(self) -> tuple[Model, ...]:
        """Every served model, the default first."""
        return decode(await self._send(operations.list_models()), ModelList).data

    async def model(self, name: str) -> Model:
        """One served model."""
        return decode(await self._send(operations.one_model(name)), Model)

    async def ready(self) -> bool:
        """Whether the service can take work now. Never tries twice."""
        try:
            return (await self._http.get("/readyz")).is_success
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

    async def _send(self, operation: Operation, accept: str = JSON) -> bytes:
        return (await self._open(operation, accept, stream=False)).content

    async def _open(self, operation: Operation, accept: str, *, stream: bool) -> httpx.Response:
        """A successful answer, read to its end unless it is a stream."""
        attempt = 0
        while True:
            request = self._request(operation, accept)
            try:
                response = await self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                await response.aread()
            except httpx.RequestError as error:
                wait = self._retries.after_failure(attempt, error)
                if wait is None:
                    raise ConnectionFailed(str(error) or type(error).__name__) from error
            else:
                refusal = error_of_answer(response.status_code, response.headers, response.content)
                wait = self._retries.after_refusal(attempt, refusal)
                if wait is None:
                    raise refusal
            await asyncio.sleep(wait)
            attempt += 1

    @asynccontextmanager
    async def _events(self, operation: Operation) -> AsyncIterator[AsyncIterator[Event]]:
        response = await self._open(operation, STREAM, stream=True)
        try:
            yield self._read(response)
        finally:
            await response.aclose()

    @staticmethod
    async def _read(response: httpx.Response) -> AsyncIterator[Event]:
        reader = EventReader()
        try:
            async for line in response.aiter_lines():
                event = reader.feed(line)
                if event is not None:
                    yield event
        except httpx.RequestError as error:
            raise ConnectionFailed(str(error) or type(error).__name__) from error
        if not reader.complete:
            raise ConnectionFailed(BROKE_OFF)

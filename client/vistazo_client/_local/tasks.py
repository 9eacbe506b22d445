"""Images that are prepared here, for an asyncio client. As `threads`, and nothing holds the event loop.

Nothing here is public.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final

from vistazo_client._codec import Chunk, Chunker, Entry, Query
from vistazo_client._images import held_bytes
from vistazo_client._local.preparation import NOT_OF_ALL, Preparation, pick_method
from vistazo_client._streams.session import StreamImage, UnpreparedImage, check_pair, stream_image
from vistazo_client.errors import DeadlineExceededError, RequestCancelledError, VistazoError

# What it takes no time to begin with.
_NO_COPY: Final = (bytes, str, os.PathLike)

_Images = Iterable[object] | AsyncIterable[object]


class PreparedImages:
    """The images of one call. `call` calls the server: which method, with what request and timeout."""

    def __init__(
        self,
        preparation: Preparation,
        call: Callable[..., Awaitable[Any]],
        query: Query,
        *,
        timeout: float,
    ) -> None:
        self._preparation = preparation
        self._call = call
        self._query = query
        self._timeout = timeout

    async def chunks(self, images: Iterable[object]) -> AsyncGenerator[Chunk, None]:
        """Yield requests that carry the images in order, as `threads` does."""
        chunker = Chunker(self._query, max_message_bytes=self._preparation.max_message_bytes)
        async with aclosing(self._entries(images)) as entries:
            async for entry in entries:
                if (chunk := chunker.add(entry)) is not None:
                    yield chunk
        if (chunk := chunker.rest()) is not None:
            yield chunk

    async def stream_images(self, images: _Images) -> AsyncGenerator[StreamImage | UnpreparedImage, None]:
        """Yield (id, image) pairs as they go into a stream, or as they will."""
        async with aclosing(_iterated(images)) as items:
            async for item in items:
                (caller_id, value), taken = check_pair(item), time.monotonic()
                with suppress(*NOT_OF_ALL):
                    await self._ask()
                yield stream_image(caller_id, await self._start(value), taken)

    async def _entries(self, images: _Images) -> AsyncGenerator[Entry, None]:
        waiting: deque[tuple[Entry | asyncio.Future[Entry], float, int]] = deque()
        held = 0
        try:
            async with aclosing(_iterated(images)) as values:
                async for value in values:
                    size = held_bytes(value)
                    held += size
                    began = time.monotonic()
                    await self._ask()
                    begun = await self._start(value)
                    ready = asyncio.wrap_future(begun) if isinstance(begun, Future) else begun
                    waiting.append((ready, time.monotonic() - began, size))
                    while self._preparation.is_enough(len(waiting), held):
                        held -= waiting[0][2]
                        yield await self._ready(*waiting.popleft()[:2])
            while waiting:
                yield await self._ready(*waiting.popleft()[:2])
        finally:
            for ready, *_ in waiting:
                if isinstance(ready, asyncio.Future):
                    ready.cancel()

    async def _ask(self) -> None:
        """Find out how the server prepares images, unless that is known."""
        preparation, query = self._preparation, self._query
        if preparation.knows(query):
            return
        question = preparation.question(query)
        try:
            answer = await self._call(pick_method(question), question, self._timeout)
        except VistazoError as error:
            answer = error
        preparation.learn(query, answer)

    async def _start(self, value: object) -> Entry | Future[Entry]:
        """Do what `Preparation.start` does; in a thread where that reads a file or copies pixels."""
        begin = partial(self._preparation.start, value, self._query)
        if isinstance(value, _NO_COPY) and self._preparation.recipe(self._query) is not None:
            return begin()
        return await asyncio.to_thread(begin)

    async def _ready(self, begun: "Entry | asyncio.Future[Entry]", waited: float) -> Entry:
        if isinstance(begun, Entry):
            begun.waited = waited
            return begun
        began = time.monotonic()
        try:
            await asyncio.wait([begun], timeout=max(self._timeout - waited, 0.0))
        except asyncio.CancelledError:
            begun.cancel()
            raise
        if not begun.done():
            begun.cancel()
            raise DeadlineExceededError(f"an image was not prepared within {self._timeout:g} s")
        if begun.cancelled():
            # By the pool: a task that is cancelled ends in the wait above.
            raise RequestCancelledError("the client was closed")
        entry = begun.result()
        entry.waited = waited + time.monotonic() - began
        return entry


async def _iterated(images: _Images) -> AsyncGenerator[object, None]:
    """Yield each image; of what is no list, and may take its time, in a thread."""
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
        return
    if isinstance(images, list | tuple):
        for image in images:
            yield image
        return
    iterator, end = iter(images), object()
    while (image := await asyncio.to_thread(next, iterator, end)) is not end:
        yield image

"""The requests of one stream: how long they are read, and how they are worked on together."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

from vistazo_server.errors import DrainingError, without_frames

Request = TypeVar("Request")
Response = TypeVar("Response")

Read = Callable[[], Coroutine[Any, Any, Request | None]]
Recheck = Callable[[], object]

REQUESTS_IN_FLIGHT: Final = 64
"""Requests of one stream that are worked on at once; more are not read, which slows their sender down."""

RECHECK_SECONDS: Final = 1.0
"""How often it is asked whether a stream on which nothing comes may stay: as often as tokens are read."""


class RequestStream(AsyncIterator[Request], Generic[Request]):
    """The requests of one stream, for as long as they may be read.

    `read` returns the next, None after the last. Raises DrainingError in place of a request once `drain` was
    called, and whatever `recheck` raises: it is asked before each request that is handed on, and while none
    comes, every RECHECK_SECONDS.
    """

    def __init__(self, read: Read[Request], recheck: Recheck | None) -> None:
        self._read_next = read
        self._recheck = recheck
        self._draining = asyncio.get_running_loop().create_future()
        self._read: asyncio.Task[Request | None] | None = None

    def drain(self) -> None:
        """Read no further. A request that was read before is still handed on."""
        if not self._draining.done():
            self._draining.set_result(None)

    def leave(self) -> None:
        """Nobody will ask for more; a read under way ends with the RPC."""
        # It is not cancelled: grpc would never free a message that comes after that.
        read, self._read = self._read, None
        if read is not None:
            read.add_done_callback(_unheeded)

    async def __anext__(self) -> Request:
        if self._read is None:
            self._raise_if_draining()
            self._read = asyncio.create_task(self._read_next())
        read = self._read
        while not read.done():
            # The end of the caller's requests, when it is here, is worth more than the news of the drain.
            await asyncio.wait(
                (read, self._draining),
                timeout=None if self._recheck is None else RECHECK_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not read.done():
                self._raise_if_draining()
                self._raise_if_forbidden()
        self._read = None
        request = read.result()
        if request is None:
            raise StopAsyncIteration
        self._raise_if_forbidden()
        return request

    def _raise_if_draining(self) -> None:
        if self._draining.done():
            raise DrainingError("the server is about to end; ask another")

    def _raise_if_forbidden(self) -> None:
        if self._recheck is not None:
            self._recheck()


def _unheeded(read: asyncio.Task[Any]) -> None:
    if not read.cancelled() and (error := read.exception()) is not None:
        without_frames(error)


class OpenStreams:
    """All streams that requests are read from, to be drained together."""

    def __init__(self) -> None:
        self._streams: set[RequestStream[Any]] = set()
        self._draining = False

    @contextmanager
    def reading(self, read: Read[Request], recheck: Recheck | None) -> Iterator[RequestStream[Request]]:
        """Hold the requests of one stream, as long as somebody wants them."""
        stream = RequestStream(read, recheck)
        if self._draining:
            stream.drain()
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            stream.leave()

    def drain(self) -> None:
        """Read no further from any stream, also of those that are yet to come."""
        self._draining = True
        for stream in self._streams:
            stream.drain()


async def answers(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Coroutine[Any, Any, Response]],
    *,
    in_order: bool,
) -> AsyncGenerator[Response, None]:
    """Yield what `answer` returns for each request, in the order of the requests or as the answers come.

    What the reading of `requests` raises ends the stream, once all that was read is answered; what `answer`
    raises ends it at once.
    """
    answered: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    room = asyncio.Semaphore(REQUESTS_IN_FLIGHT)
    tasks: set[asyncio.Task[Response]] = set()

    async def read() -> None:
        try:
            async for request in requests:
                # Given back when the answer is sent: a caller that does not read is not read from.
                await room.acquire()
                task = asyncio.create_task(answer(request))
                tasks.add(task)
                if in_order:
                    answered.put_nowait(task)
                else:
                    task.add_done_callback(answered.put_nowait)
                del request  # while the next is waited for, and when the stream is cut
        finally:
            if tasks and not in_order:
                await asyncio.wait(tasks)
            answered.put_nowait(None)

    # No task group: one around a `yield` that is left by a caller who went would raise a group of errors.
    reader = asyncio.create_task(read())
    try:
        while (task := await answered.get()) is not None:
            response = await task
            tasks.discard(task)
            yield response
            room.release()
        await reader  # raises what ended the reading
    finally:
        under_way = (reader, *tasks)
        for one in under_way:
            one.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

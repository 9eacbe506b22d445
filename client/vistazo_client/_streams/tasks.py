"""A `StreamSession` driven by tasks of one event loop.

Nothing here is public.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import grpc
import grpc.aio

from vistazo_client._codec import Entry
from vistazo_client._streams.session import (
    FAREWELL_SECONDS,
    STREAM_IMAGES_IN_FLIGHT,
    StreamImage,
    StreamSession,
    UnpreparedImage,
)
from vistazo_client.errors import RequestCancelledError, VistazoError
from vistazo_client.results import Classification
from vistazo_proto import classification_pb2 as pb

_Requests = AsyncIterator[pb.ClassifyStreamRequest]
_OpenStream = Callable[
    [_Requests], tuple[Any, Callable[[grpc.RpcError], VistazoError], Callable[[], VistazoError]]
]


class StreamTasks:
    """One run of `AsyncClient.classify_stream`."""

    def __init__(
        self,
        session: StreamSession,
        images: AsyncGenerator[StreamImage | UnpreparedImage, None],
        open_stream: _OpenStream,
        again: Callable[[Entry], Future[Entry]],
    ) -> None:
        self._session = session
        self._again = again
        self._futures: set[asyncio.Future[Entry]] = set()
        """What threads of the client still prepare."""
        self._images = images
        self._open_stream = open_stream
        self._stream: _Stream | None = None
        # As in StreamThreads: what happens in other tasks is done in this one, and there is never more of
        # it than there is room for.
        self._events: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        self._room = asyncio.Semaphore(STREAM_IMAGES_IN_FLIGHT)

    async def results(self) -> AsyncIterator[tuple[object, Classification]]:
        """Yield (id, result) pairs until all images are answered."""
        session = self._session
        taking = asyncio.create_task(self._take_images(), name="vistazo-stream-images")
        try:
            while True:
                self._handle_events()
                session.expire()
                self._move_on()
                self._encode_refused()
                # Before a result is handed over: the server works while the caller does.
                self._send_due()
                if session.results:
                    result = session.results.popleft()
                    self._room.release()
                    # The caller may take its time; what comes meanwhile was in time all the same.
                    yield result
                    continue
                if session.finished:
                    break
                await self._wait(session.seconds_to_wait())
            session.raise_failure()
            await self._say_goodbye()
        finally:
            await self._stop(taking)

    def _handle_events(self) -> None:
        while not self._events.empty():
            self._events.get_nowait()()

    async def _wait(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                event = await self._events.get()
        except TimeoutError:
            return
        event()

    def _move_on(self) -> None:
        """Leave a server of which nothing is heard, and ask another."""
        if self._stream is not None and self._session.hangs():
            left = self._stream
            left.cancel()
            self._session.lost(left, left.hangs())

    def _send_due(self) -> None:
        due = self._session.take_due()
        if due and self._session.stream is None:
            self._stream = self._session.stream = _Stream(self._session, self._events, self._open_stream)
        for request in due:
            assert self._stream is not None  # noqa: S101  for mypy: opened above
            self._stream.send(request)

    async def _take_images(self) -> None:
        failure: BaseException | None = None
        try:
            while await self._room.acquire():
                image = await anext(self._images, None)
                if image is None:
                    break
                if isinstance(image, UnpreparedImage):
                    self._session.announce()
                    self._when_done(image.future, partial(self._session.add_announced, image))
                else:
                    self._events.put_nowait(partial(self._session.add, image))
        # The images' source is the caller's code: whatever it raises is the caller's to see.
        except Exception as error:  # noqa: BLE001
            failure = error
        self._events.put_nowait(partial(self._session.end, failure))

    def _encode_refused(self) -> None:
        for number, entry in self._session.take_refused():
            future = self._again(entry)
            self._when_done(future, partial(self._session.resend, number, future))

    def _when_done(self, future: Future[Entry], event: Callable[[], None]) -> None:
        waiting = asyncio.wrap_future(future)
        self._futures.add(waiting)

        def done(_: asyncio.Future[Entry]) -> None:
            # Its exception is the event's to find; asyncio would tell of one that nobody has looked at.
            if not waiting.cancelled():
                waiting.exception()
            self._events.put_nowait(event)
            self._futures.discard(waiting)

        waiting.add_done_callback(done)

    async def _stop(self, taking: "asyncio.Task[None]") -> None:
        for future in list(self._futures):
            future.cancel()
        tasks = {taking}
        if self._stream is not None:
            self._stream.cancel()
            tasks.add(self._stream.reader)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._images.aclose()

    async def _say_goodbye(self) -> None:
        if self._session.stream is not None and self._stream is not None:
            self._stream.send(None)
            await asyncio.wait({self._stream.reader}, timeout=FAREWELL_SECONDS)


class _Stream:
    """One open RPC and the task that reads from it."""

    def __init__(
        self,
        session: StreamSession,
        events: "asyncio.Queue[Callable[[], None]]",
        open_stream: _OpenStream,
    ) -> None:
        self._session = session
        self._events = events
        self._requests: asyncio.Queue[pb.ClassifyStreamRequest | None] = asyncio.Queue()
        self._call, self._error, self.hangs = open_stream(self._take_requests())
        self.reader = asyncio.create_task(self._read(), name="vistazo-stream-answers")

    def send(self, request: pb.ClassifyStreamRequest | None) -> None:
        """Send a request; None: there will be no more."""
        self._requests.put_nowait(request)

    def cancel(self) -> None:
        """End the RPC."""
        self._call.cancel()

    async def _take_requests(self) -> _Requests:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        failure: VistazoError | None = None
        try:
            async for response in self._call:
                self._events.put_nowait(partial(self._session.answer, self, response))
        except grpc.RpcError as error:
            failure = self._error(error)
        except asyncio.CancelledError:
            if _is_cancelled():
                self._requests.put_nowait(None)
                raise
            # Not this task: the call, with its client.
            failure = RequestCancelledError("the stream was cancelled")
        # Lets go of what grpc still waits for more requests with.
        self._requests.put_nowait(None)
        self._events.put_nowait(partial(self._session.lost, self, failure))


def _is_cancelled() -> bool:
    """Return whether it is the running task that was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

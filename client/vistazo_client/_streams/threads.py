"""A `StreamSession` driven by threads: one takes images, one reads answers, the caller's does the rest.

Nothing here is public.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import grpc

from vistazo_client._codec import Entry
from vistazo_client._streams.session import (
    FAREWELL_SECONDS,
    STREAM_IMAGES_IN_FLIGHT,
    StreamImage,
    StreamSession,
    UnpreparedImage,
)
from vistazo_client.errors import VistazoError
from vistazo_client.results import Classification
from vistazo_proto import classification_pb2 as pb

_Requests = Iterator[pb.ClassifyStreamRequest]
_OpenStream = Callable[
    [_Requests], tuple[Any, Callable[[grpc.RpcError], VistazoError], Callable[[], VistazoError]]
]


class StreamThreads:
    """One run of `Client.classify_stream`."""

    def __init__(
        self,
        session: StreamSession,
        images: Iterator[StreamImage | UnpreparedImage],
        open_stream: _OpenStream,
        again: Callable[[Entry], Future[Entry]],
    ) -> None:
        self._session = session
        self._again = again
        self._futures: set[Future[Entry]] = set()
        """What threads of the client still prepare."""
        self._images = images
        self._open_stream = open_stream
        self._stream: _Stream | None = None
        self._stopped = False
        # Everything that happens elsewhere is done in the caller's thread, in the order it happened. The
        # images that are on their way through all of this are never more than there is room for.
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._room = threading.Semaphore(STREAM_IMAGES_IN_FLIGHT)

    def results(self) -> Iterator[tuple[object, Classification]]:
        """Yield (id, result) pairs until all images are answered."""
        session = self._session
        threading.Thread(target=self._take_images, name="vistazo-stream-images", daemon=True).start()
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
                self._wait(session.seconds_to_wait())
            session.raise_failure()
            self._say_goodbye()
        finally:
            self._stop()

    def _handle_events(self) -> None:
        while not self._events.empty():
            self._events.get()()

    def _wait(self, seconds: float | None) -> None:
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
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

    def _take_images(self) -> None:
        failure: BaseException | None = None
        try:
            while self._room.acquire() and not self._stopped:
                image = next(self._images, None)
                if image is None:
                    break
                if isinstance(image, UnpreparedImage):
                    self._events.put(self._session.announce)
                    self._when_done(image.future, partial(self._session.add_announced, image))
                else:
                    self._events.put(partial(self._session.add, image))
        # The images' source is the caller's code: whatever it raises is the caller's to see.
        except BaseException as error:  # noqa: BLE001
            failure = error
        self._events.put(partial(self._session.end, failure))

    def _encode_refused(self) -> None:
        for number, entry in self._session.take_refused():
            future = self._again(entry)
            self._when_done(future, partial(self._session.resend, number, future))

    def _when_done(self, future: Future[Entry], event: Callable[[], None]) -> None:
        def done(_: Future[Entry]) -> None:
            self._events.put(event)
            self._futures.discard(future)

        self._futures.add(future)
        future.add_done_callback(done)

    def _say_goodbye(self) -> None:
        if self._session.stream is not None and self._stream is not None:
            self._stream.send(None)
            self._stream.reader.join(FAREWELL_SECONDS)

    def _stop(self) -> None:
        self._stopped = True
        self._room.release()
        for future in list(self._futures):
            future.cancel()
        if self._stream is not None:
            self._stream.cancel()


class _Stream:
    """One open RPC and the thread that reads from it."""

    def __init__(
        self,
        session: StreamSession,
        events: "queue.SimpleQueue[Callable[[], None]]",
        open_stream: _OpenStream,
    ) -> None:
        self._session = session
        self._events = events
        self._requests: queue.SimpleQueue[pb.ClassifyStreamRequest | None] = queue.SimpleQueue()
        self._call, self._error, self.hangs = open_stream(iter(self._requests.get, None))
        self.reader = threading.Thread(target=self._read, name="vistazo-stream-answers", daemon=True)
        self.reader.start()

    def send(self, request: pb.ClassifyStreamRequest | None) -> None:
        """Send a request; None: there will be no more."""
        self._requests.put(request)

    def cancel(self) -> None:
        """End the RPC, and with it the thread that reads from it."""
        self._call.cancel()

    def _read(self) -> None:
        failure: VistazoError | None = None
        try:
            for response in self._call:
                self._events.put(partial(self._session.answer, self, response))
        except grpc.RpcError as error:
            failure = self._error(error)
        # Lets go of what grpc still waits for more requests with.
        self._requests.put(None)
        self._events.put(partial(self._session.lost, self, failure))

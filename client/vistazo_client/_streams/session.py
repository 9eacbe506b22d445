"""One `classify_stream`: what is asked, what is answered, what is asked again. No I/O and no waiting.

Nothing here is public.
"""

import time
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Final

from vistazo_client._codec import Chunk, Query, decode_chunk, name_error
from vistazo_client._images import MESSAGE_OVERHEAD_BYTES, encode_image, image_name
from vistazo_client._retry import Attempts
from vistazo_client.errors import (
    DeadlineExceededError,
    InvalidImageError,
    UnavailableError,
    VistazoError,
    error_from_code,
)
from vistazo_client.results import Classification
from vistazo_proto import classification_pb2 as pb

# Images that are with the server at once, each a request of its own: a few batches.
STREAM_IMAGES_IN_FLIGHT: Final = 32

# After the last answer: for the server to end the stream, so that it counts as done and not as cancelled.
FAREWELL_SECONDS: Final = 1.0

# What an uint32 holds: seven weeks.
LONGEST_TIMEOUT_MS: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class StreamImage:
    """One image of the caller's, with the caller's own id, ready to be sent; or why it is not."""

    id: object
    name: str
    message: pb.Image | InvalidImageError


def encode_stream_image(item: object, *, max_message_bytes: int) -> StreamImage:
    """Return an (id, image) pair as it goes into a stream. Raises TypeError when it is no pair."""
    if not isinstance(item, tuple) or len(item) != 2:
        raise TypeError(f"expected (id, image) pairs, such as enumerate() gives, got {type(item).__name__}")
    caller_id, value = item
    name = image_name(value)
    message: pb.Image | InvalidImageError
    try:
        message = encode_image(value, max_bytes=max_message_bytes - MESSAGE_OVERHEAD_BYTES)
    except InvalidImageError as error:
        message = error
    return StreamImage(caller_id, name, message)


@dataclass(slots=True)
class _Waiting:
    """An image without an answer yet."""

    image: StreamImage
    request: pb.ClassifyRequest
    attempts: Attempts
    deadline: float
    due: float | None
    """When to send it; None while it is with the server."""


class StreamSession:
    """The images of one stream that wait for an answer, and the answers that wait for the caller.

    The caller's ids may be anything, even equal: on the wire each image has a number of its own. An answer
    to a number that is no longer waited for is dropped.
    """

    def __init__(self, query: Query, *, timeout: float, retries: int) -> None:
        self.results: deque[tuple[object, Classification]] = deque()
        """Answers that the caller has not got yet."""
        self.stream: object | None = None
        """The RPC that is open; what comes from any other is too late to count."""
        self.failure: BaseException | None = None
        """What to raise once `results` is empty: there will be no more answers."""
        self._query = query
        self._timeout = timeout
        self._retries = retries
        self._numbers = count()
        self._waiting: dict[str, _Waiting] = {}
        self._ended = False
        self._source_failure: BaseException | None = None
        self._connecting = self._new_connecting()
        self._probing = False

    def _new_connecting(self) -> Attempts:
        # The images' own deadlines bound the time.
        return Attempts(retries=self._retries, timeout=float("inf"))

    @property
    def finished(self) -> bool:
        """Whether there will be no more answers than those in `results`."""
        return self.failure is not None or (self._ended and not self._waiting)

    def add(self, image: StreamImage) -> None:
        """Take an image in."""
        if isinstance(image.message, InvalidImageError):
            self.results.append((image.id, Classification(error=image.message)))
            return
        now = time.monotonic()
        self._waiting[str(next(self._numbers))] = _Waiting(
            image,
            self._query.request([image.message]),
            Attempts(retries=self._retries, timeout=self._timeout),
            deadline=now + self._timeout,
            due=now,
        )

    def end(self, failure: BaseException | None) -> None:
        """There will be no more images. failure: what their source raised, for after the last answer."""
        self._ended = True
        self._source_failure = failure

    def raise_failure(self) -> None:
        """Raise what ended the stream or its source, if anything did."""
        failure = self.failure or self._source_failure
        if failure is not None:
            raise failure

    def take_due(self) -> list[pb.ClassifyStreamRequest]:
        """Return the requests to send now, and count them as sent.

        After a stream broke it is one until that is answered: there may be no better server yet, and why
        it broke is lost when the end comes between two requests (see _core).
        """
        now = time.monotonic()
        requests: list[pb.ClassifyStreamRequest] = []
        for number, waiting in self._waiting.items():
            if self.failure is not None or (self._probing and (requests or self.stream is not None)):
                break
            if waiting.due is not None and waiting.due <= now:
                waiting.due = None
                left_ms = min(max(1, (waiting.deadline - now) * 1000), LONGEST_TIMEOUT_MS)
                requests.append(
                    pb.ClassifyStreamRequest(id=number, request=waiting.request, timeout_ms=round(left_ms))
                )
        return requests

    def answer(self, stream: object, response: pb.ClassifyStreamResponse) -> None:
        """Take an answer in: a result for the caller, or a reason to ask again."""
        if stream is not self.stream:
            return
        self._connecting = self._new_connecting()
        self._probing = False
        waiting = self._waiting.get(response.id)
        if waiting is None or waiting.due is not None:
            return
        result = self._result(waiting, response)
        if result is not None:
            del self._waiting[response.id]
            self.results.append((waiting.image.id, result))

    def _result(self, waiting: _Waiting, response: pb.ClassifyStreamResponse) -> Classification | None:
        """Return the result in `response`; None where the image is to be sent again."""
        name = waiting.image.name
        if response.WhichOneof("outcome") == "response":
            try:
                (result,) = decode_chunk(Chunk(waiting.request, entries=[name]), response.response)
            except VistazoError as error:
                return Classification(error=error)
            return result
        failure = error_from_code(response.error.code, response.error.message, response.error.reason)
        if response.HasField("retry_pushback_ms"):
            failure.retry_after = response.retry_pushback_ms / 1000
        delay = waiting.attempts.delay_after(failure)
        if delay is None:
            return Classification(error=name_error(failure, name))
        waiting.due = time.monotonic() + delay
        return None

    def lost(self, stream: object, error: VistazoError | None) -> None:
        """Ask again for what an ended stream did not answer, or fail where another would fare no better.

        error: why; None where the server ended it in peace.
        """
        if stream is not self.stream:
            return
        self.stream = None
        if not self._waiting:
            # An idle connection may go at any time; the next image opens another.
            return
        error = error or UnavailableError("the server ended the stream before it answered everything")
        delay = self._connecting.delay_after(error)
        if delay is None:
            self.failure = error
            return
        self._probing = True
        due = time.monotonic() + delay
        for waiting in self._waiting.values():
            waiting.due = due if waiting.due is None else max(due, waiting.due)

    def expire(self) -> None:
        """Answer the images whose time is over."""
        now = time.monotonic()
        for number, waiting in list(self._waiting.items()):
            if waiting.deadline <= now:
                del self._waiting[number]
                self._probing = False
                error = DeadlineExceededError(f"no answer within {self._timeout:g} s")
                result = Classification(error=name_error(error, waiting.image.name))
                self.results.append((waiting.image.id, result))

    def seconds_to_wait(self) -> float | None:
        """Return after how long something is due or over; None where only an event can be next."""
        held_back = self._probing and self.stream is not None
        times = [
            waiting.deadline if waiting.due is None or held_back else min(waiting.due, waiting.deadline)
            for waiting in self._waiting.values()
        ]
        return max(0.0, min(times) - time.monotonic()) if times else None

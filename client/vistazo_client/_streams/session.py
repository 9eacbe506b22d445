"""One `classify_stream`: what is asked, what is answered, what is asked again. No I/O and no waiting.

Nothing here is public.
"""

import math
import time
from collections import deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from itertools import count
from typing import Final

from vistazo_client._codec import (
    Chunk,
    Entry,
    Query,
    decode_chunk,
    encode_entry,
    is_prepared_otherwise,
    name_error,
)
from vistazo_client._retry import Attempts
from vistazo_client.errors import (
    DeadlineExceededError,
    InvalidImageError,
    RequestCancelledError,
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
    entry: Entry
    taken: float
    """When it was taken from the caller's images, in the time of time.monotonic."""


@dataclass(frozen=True, slots=True)
class UnpreparedImage:
    """One image of the caller's that threads of this client prepare."""

    id: object
    future: Future[Entry]
    taken: float

    def prepared(self) -> StreamImage:
        """Return it once it is ready. Raises RequestCancelledError when the client was closed before."""
        try:
            return StreamImage(self.id, self.future.result(), self.taken)
        except CancelledError:
            raise RequestCancelledError("the client was closed") from None


def stream_image(
    caller_id: object, entry: Entry | Future[Entry], taken: float
) -> StreamImage | UnpreparedImage:
    """Return an image with its id, ready or not."""
    if isinstance(entry, Entry):
        return StreamImage(caller_id, entry, taken)
    return UnpreparedImage(caller_id, entry, taken)


def check_pair(item: object) -> tuple[object, object]:
    """Return an (id, image) pair. Raises TypeError when it is none."""
    if not isinstance(item, tuple) or len(item) != 2:
        raise TypeError(f"expected (id, image) pairs, such as enumerate() gives, got {type(item).__name__}")
    return item


def encode_stream_image(item: object, *, max_message_bytes: int) -> StreamImage:
    """Return an (id, image) pair as it goes into a stream. Raises TypeError when it is no pair."""
    caller_id, value = check_pair(item)
    entry = encode_entry(value, max_message_bytes=max_message_bytes)
    return StreamImage(caller_id, entry, time.monotonic())


@dataclass(slots=True)
class _Waiting:
    """An image without an answer yet."""

    image: StreamImage
    request: pb.ClassifyRequest
    attempts: Attempts
    deadline: float
    due: float | None
    """When to send it; None while it is with the server, infinity while it is made ready to be sent again."""


class StreamSession:
    """The images of one stream that wait for an answer, and the answers that wait for the caller.

    The caller's ids may be anything, even equal: on the wire each image has a number of its own. An answer
    to a number that is no longer waited for is dropped.
    """

    def __init__(self, query: Query, *, timeout: float, retries: int, can_move: bool = False) -> None:
        self.results: deque[tuple[object, Classification]] = deque()
        """Answers that the caller has not got yet."""
        self.stream: object | None = None
        """The RPC that is open; what comes from any other is too late to count."""
        self.failure: BaseException | None = None
        """What to raise once `results` is empty: there will be no more answers."""
        self._query = query
        self._timeout = timeout
        self._retries = retries
        self._can_move = can_move
        """Whether there are other servers to open a stream to."""
        self._quiet_since = math.inf
        """Since when images are with the server and nothing was heard of it."""
        self._numbers = count()
        self._waiting: dict[str, _Waiting] = {}
        self._announced = 0
        self._refused: list[tuple[str, Entry]] = []
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
        return self.failure is not None or (self._ended and not self._waiting and not self._announced)

    def announce(self) -> None:
        """Count an image that will be added once it is prepared."""
        self._announced += 1

    def add_announced(self, image: UnpreparedImage) -> None:
        """Take in an image that was announced, and is ready; or fail as its preparation did."""
        self._announced -= 1
        try:
            prepared = image.prepared()
        # Such as no memory, or the end of the client: what is wrong is not the image.
        except Exception as error:  # noqa: BLE001
            self.failure = self.failure or error
            return
        self.add(prepared)

    def add(self, image: StreamImage) -> None:
        """Take an image in."""
        message = image.entry.message
        if isinstance(message, InvalidImageError):
            self.results.append((image.id, Classification(error=message)))
            return
        now = time.monotonic()
        deadline = image.taken + self._timeout
        self._waiting[str(next(self._numbers))] = _Waiting(
            image,
            self._query.request([message], prepared_as=image.entry.prepared_as),
            Attempts(retries=self._retries, timeout=deadline - now),
            deadline=deadline,
            due=now,
        )

    def take_refused(self) -> list[tuple[str, Entry]]:
        """Return what the server refused as prepared for something else: to be sent as it is, by `resend`."""
        refused, self._refused = self._refused, []
        return refused

    def resend(self, number: str, future: Future[Entry]) -> None:
        """Send an image that was refused as it is now."""
        waiting = self._waiting.get(number)
        if waiting is None or future.cancelled():
            return
        message = future.result().message
        if isinstance(message, InvalidImageError):
            del self._waiting[number]
            self.results.append((waiting.image.id, Classification(error=message)))
            return
        waiting.request = self._query.request([message])
        waiting.due = time.monotonic()

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
        was_idle = self.stream is None or all(waiting.due is not None for waiting in self._waiting.values())
        for number, waiting in self._waiting.items():
            if self.failure is not None or (self._probing and (requests or self.stream is not None)):
                break
            if waiting.due is not None and waiting.due <= now:
                waiting.due = None
                left_ms = min(max(1, (waiting.deadline - now) * 1000), LONGEST_TIMEOUT_MS)
                requests.append(
                    pb.ClassifyStreamRequest(id=number, request=waiting.request, timeout_ms=round(left_ms))
                )
        if requests and was_idle:
            self._quiet_since = now
        return requests

    def answer(self, stream: object, response: pb.ClassifyStreamResponse) -> None:
        """Take an answer in: a result for the caller, or a reason to ask again."""
        if stream is not self.stream:
            return
        self._connecting = self._new_connecting()
        self._probing = False
        self._quiet_since = time.monotonic()
        waiting = self._waiting.get(response.id)
        if waiting is None or waiting.due is not None:
            return
        result = self._result(waiting, response)
        if result is not None:
            del self._waiting[response.id]
            self.results.append((waiting.image.id, result))

    def _result(self, waiting: _Waiting, response: pb.ClassifyStreamResponse) -> Classification | None:
        """Return the result in `response`; None where the image is to be sent again."""
        name = waiting.image.entry.name
        if response.WhichOneof("outcome") == "response":
            try:
                (result,) = decode_chunk(Chunk(waiting.request, entries=[name]), response.response)
            except VistazoError as error:
                return Classification(error=error)
            return result
        failure = error_from_code(response.error.code, response.error.message, response.error.reason)
        if is_prepared_otherwise(waiting.request, failure):
            # Not before it is here in another form.
            waiting.due = math.inf
            self._refused.append((response.id, waiting.image.entry))
            return None
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

    def hangs(self) -> bool:
        """Return whether nothing was heard of the server for so long that another is to be asked."""
        return time.monotonic() >= self._moves_at()

    def _moves_at(self) -> float:
        is_asked = self.stream is not None and any(each.due is None for each in self._waiting.values())
        if not (self._can_move and is_asked):
            return math.inf
        # Late enough for a server that is slow, early enough for the answers of another.
        return self._quiet_since + self._timeout / 2

    def expire(self) -> None:
        """Answer the images whose time is over."""
        now = time.monotonic()
        for number, waiting in list(self._waiting.items()):
            if waiting.deadline <= now:
                del self._waiting[number]
                self._probing = False
                error = DeadlineExceededError(f"no answer within {self._timeout:g} s")
                result = Classification(error=name_error(error, waiting.image.entry.name))
                self.results.append((waiting.image.id, result))

    def seconds_to_wait(self) -> float | None:
        """Return after how long something is due or over; None where only an event can be next."""
        held_back = self._probing and self.stream is not None
        times = [
            waiting.deadline if waiting.due is None or held_back else min(waiting.due, waiting.deadline)
            for waiting in self._waiting.values()
        ]
        return max(0.0, min(*times, self._moves_at()) - time.monotonic()) if times else None

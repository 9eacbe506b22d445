"""Images that are prepared here, for a blocking client: asked about, begun ahead, and handed on in order.

Nothing here is public.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

from vistazo_client._codec import Chunk, Entry, Query, chunk_entries
from vistazo_client._images import held_bytes
from vistazo_client._local.preparation import NOT_OF_ALL, Preparation, pick_method
from vistazo_client._streams.session import StreamImage, UnpreparedImage, check_pair, stream_image
from vistazo_client.errors import DeadlineExceededError, RequestCancelledError, VistazoError


class PreparedImages:
    """The images of one call. `call` calls the server: which method, with what request and timeout."""

    def __init__(
        self, preparation: Preparation, call: Callable[..., Any], query: Query, *, timeout: float
    ) -> None:
        self._preparation = preparation
        self._call = call
        self._query = query
        self._timeout = timeout

    def chunks(self, images: Iterable[object]) -> Iterator[Chunk]:
        """Yield requests that carry the images in order.

        Raises DeadlineExceededError when an image takes longer than the timeout, and what asking the server
        raises.
        """
        entries = self._entries(images)
        return chunk_entries(entries, self._query, max_message_bytes=self._preparation.max_message_bytes)

    def stream_image(self, item: object) -> StreamImage | UnpreparedImage:
        """Return an (id, image) pair as it goes into a stream, or as it will."""
        (caller_id, value), taken = check_pair(item), time.monotonic()
        with suppress(*NOT_OF_ALL):
            self._ask()
        return stream_image(caller_id, self._preparation.start(value, self._query), taken)

    def _entries(self, images: Iterable[object]) -> Iterator[Entry]:
        waiting: deque[tuple[Entry | Future[Entry], float, int]] = deque()
        held = 0
        try:
            for value in images:
                size = held_bytes(value)
                held += size
                began = time.monotonic()
                self._ask()
                begun = self._preparation.start(value, self._query)
                waiting.append((begun, time.monotonic() - began, size))
                while self._preparation.is_enough(len(waiting), held):
                    held -= waiting[0][2]
                    yield self._ready(*waiting.popleft()[:2])
            while waiting:
                yield self._ready(*waiting.popleft()[:2])
        finally:
            for begun, *_ in waiting:
                if isinstance(begun, Future):
                    begun.cancel()

    def _ask(self) -> None:
        """Find out how the server prepares images, unless that is known."""
        preparation, query = self._preparation, self._query
        if preparation.knows(query):
            return
        question = preparation.question(query)
        try:
            answer = self._call(pick_method(question), question, self._timeout)
        except VistazoError as error:
            answer = error
        preparation.learn(query, answer)

    def _ready(self, begun: Entry | Future[Entry], waited: float) -> Entry:
        if isinstance(begun, Entry):
            begun.waited = waited
            return begun
        began = time.monotonic()
        try:
            entry = begun.result(max(self._timeout - waited, 0.0))
        except TimeoutError:
            begun.cancel()
            raise DeadlineExceededError(f"an image was not prepared within {self._timeout:g} s") from None
        except CancelledError:
            raise RequestCancelledError("the client was closed") from None
        entry.waited = waited + time.monotonic() - began
        return entry

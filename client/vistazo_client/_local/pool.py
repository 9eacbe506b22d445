"""Pool: the threads of one client that prepare images.

Threads and not processes: Pillow lets go of the GIL while it decodes and resizes, and nothing has to be
copied. On two cores, two threads take 84 ms of CPU for a photograph of 12 megapixels and 3.3 ms for one of
500×375, where one takes 84 and 3.1; two processes take 112 and 3.9.

Nothing here is public.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

from vistazo_client._fork_lock import ForkLock
from vistazo_client.errors import RequestCancelledError

# One client on a large machine does not take all of it.
MOST_THREADS: Final = 8

# That the large images (over a megapixel) in work may take together. One of 50 megapixels takes up to 500 MB;
# one alone may always be in work.
DECODE_BYTES: Final = 1 << 30

_Out = TypeVar("_Out")


class Pool:
    """Threads that begin with the first image; a forked child begins its own."""

    def __init__(self) -> None:
        self.threads: Final = min(_processors(), MOST_THREADS)
        self._started: _Started | None = None
        self._closed = False

    def submit(self, work: Callable[..., _Out], *arguments: object) -> "Future[_Out]":
        """Let a thread do `work`. Raises RequestCancelledError once the pool is closed."""
        started = self._started
        if started is None or started.process != os.getpid():
            started = self._start()
        try:
            return started.executor.submit(work, *arguments)
        except RuntimeError:
            # What an executor raises when another thread has just closed it.
            if self._closed:
                raise _closed() from None
            raise

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until so many bytes may be used, and hold them; for the work on an image."""
        started = self._started
        assert started is not None  # noqa: S101  for mypy: it is one of its threads that asks
        with started.has_room:
            started.has_room.wait_for(lambda: not started.held or started.held + size <= DECODE_BYTES)
            started.held += size
        try:
            yield
        finally:
            with started.has_room:
                started.held -= size
                started.has_room.notify_all()

    def close(self) -> None:
        """Cancel what waits. A thread ends when it is done with its image; it is not waited for."""
        with _starting.lock:
            self._closed = True
            started = self._started
        if started is not None and started.process == os.getpid():
            started.executor.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> "_Started":
        with _starting.lock:
            if self._closed:
                raise _closed()
            started = self._started
            if started is None or started.process != os.getpid():
                self._started = started = _Started(self.threads)
            return started


class _Started:
    """The threads of one process."""

    def __init__(self, threads: int) -> None:
        self.process = os.getpid()
        self.executor = ThreadPoolExecutor(threads, thread_name_prefix="vistazo-prepare")
        self.has_room = threading.Condition()
        self.held = 0
        """Bytes that large images in work take."""


# Under which threads are started.
_starting = ForkLock()


def _closed() -> RequestCancelledError:
    return RequestCancelledError("the client was closed")


def _processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""PreprocessPool: threads that decode images for all models, and which of those that wait is next.

The rules, each tested by its name in tests/server/inference/test_preprocess_pool.py:

1. Fair between requests: the threads take one image of each waiting request in turn, so that a request of
   one image waits for at most one of each other request.
2. Small and large images wait apart. A thread looks at an image's header first, and decodes a small image in
   the same go. A large one joins the queue of the large, which never take the last thread, and which together
   stay within a budget of memory. An image that alone needs more than the budget is decoded alone. The files
   of those that wait may be a part of the budget.
3. Part of admission: `ready_in` predicts when a newcomer's images will be ready, by what images took in the
   last moments. While a thread is free nothing is predicted, but tried. A request whose large images cannot
   be decoded by its deadline is refused as soon as their headers have told.
4. What nobody waits for is not begun: the images of a request leave with it, at its deadline too. What a
   thread has begun cannot be interrupted, but nobody waits for it.

Everything but the work on an image happens on one event loop, so no locks.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import structlog

from vistazo_preprocessing.preprocessor import Large
from vistazo_server.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    DrainingError,
    InferenceError,
    QueueFullError,
    ServingError,
    without_frames,
)
from vistazo_server.inference.fair_queue import FairQueue

LARGE_PIXELS: Final = 1_000_000
"""An image of more pixels is large. Up to here one takes some 5 to 40 ms, which others may well wait for."""

# Over how long times are averaged: a slow moment is forgotten within a second of ordinary traffic.
MEMORY_SECONDS: Final = 0.25
# What took more than this many times as long as others did of late counts no more than that: the machine
# stood still, which says nothing about images.
OUTLIER: Final = 8.0
# A predicted wait is stretched by this much: who stands at the end of a queue needs some time to spare, and
# what is spent on those who are late is lost. A shorter queue costs nothing while it is never empty. With
# twice the load that can be, and times that vary by 60 %, 0.72 of what can be is done in time without it and
# 0.98 with it (simulated).
STRETCH: Final = 1.5
# A request is given up half-way when the rest would take this many times the time that is left: predictions
# vary, and what it has cost already would be lost.
GIVE_UP: Final = 1.5

# Of the memory for large images, what the files of those that wait may be. Each is there twice: grpc keeps
# what it has received until the RPC ends.
WAITING_SHARE: Final = 0.25

log = structlog.get_logger(__name__)

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Work = Callable[[_In, float], _Out | Large]
"""What a thread does with an image: returns what becomes of it, or Large when it has more pixels than the
number says."""


class RecentRate:
    """Seconds that a unit of work took, over the last moments."""

    __slots__ = ("_at", "_seconds", "_units")

    def __init__(self) -> None:
        self._seconds = 0.0
        self._units = 0.0
        self._at = -math.inf

    def observe(self, seconds: float, units: float, now: float) -> None:
        """Take note of work that ended at `now`: it counts less the longer ago it was."""
        expected = self.seconds(units)
        if expected:
            seconds = min(seconds, OUTLIER * expected)
        fade = math.exp((self._at - now) / MEMORY_SECONDS)
        self._seconds = self._seconds * fade + seconds
        self._units = self._units * fade + units
        self._at = now

    def seconds(self, units: float) -> float:
        """Return the predicted seconds of so many units of work; 0.0 before anything was measured."""
        return units * self._seconds / self._units if self._units else 0.0


@dataclass(slots=True, eq=False)
class _Request:
    """Images that came together."""

    work: Work[Any, Any]
    results: list[Any]
    unfinished: int
    """Images without a result."""
    deadline: float
    began: float
    done: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class _Image:
    request: _Request
    index: int
    """In the request."""
    image: Any
    units: int = 1
    """Of work, as its lane counts: a small image is one, a large one its pixels."""
    memory: int = 0
    """Bytes that a large image needs."""
    file: int = 0
    """Bytes of a large image while it waits."""
    began: float = 0.0


@dataclass(slots=True)
class _Lane:
    """The small images, or the large."""

    waiting: FairQueue[_Request, _Image] = field(default_factory=FairQueue)
    running: set[_Image] = field(default_factory=set)
    rate: RecentRate = field(default_factory=RecentRate)

    @property
    def pending(self) -> int:
        return len(self.waiting) + len(self.running)

    def seconds_left(self, now: float) -> float:
        """Return the predicted seconds of a thread that the images in work still take."""
        return sum(max(self.rate.seconds(image.units) - (now - image.began), 0.0) for image in self.running)


class PreprocessPool:
    """Threads that decode and resize images, shared by all models. Use it from one event loop.

    `threads` may work on images of one kind, small or large; one more is there for the other kind. `limit`:
    most images of a kind that may wait. `memory`: most bytes that the large images in work may need. The
    clock counts in seconds, deadlines are in its time. An `executor` must have `threads` + 1 threads.
    """

    def __init__(
        self,
        *,
        threads: int,
        limit: int,
        memory: int,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        self._threads = threads
        self._limit = limit
        self._memory = memory
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(threads + 1, thread_name_prefix="preprocess")
        self._small = _Lane()
        self._large = _Lane()
        self._closing = False

    @property
    def pending(self) -> int:
        """Images that wait or are in work, for callers who have gone, too."""
        return self._small.pending + self._large.pending

    def ready_in(self, images: int) -> float:
        """Return the predicted seconds until so many images of a newcomer are ready, if they are small."""
        lane, threads = self._small, self._threads_for_small()
        if not lane.waiting and len(lane.running) < threads:
            # Else a wrong prediction could refuse everybody, and nothing would ever be measured again.
            return 0.0
        before = lane.waiting.before_newcomer(images)
        wait = lane.seconds_left(self._clock()) + lane.rate.seconds(before)
        return STRETCH * wait / threads + max(lane.rate.seconds(images) / threads, lane.rate.seconds(1))

    async def map(
        self, work: Work[_In, _Out], images: Sequence[_In], *, deadline: float = math.inf
    ) -> list[_Out | ServingError]:
        """Return what becomes of each image, at least one, or the ServingError that the work on it raised.

        Raises OverloadedError when refused, DeadlineExceededError at the deadline, DrainingError when the
        pool is closed. Any other error of the work is logged, and becomes an InferenceError.
        """
        self._admit(len(images))
        loop = asyncio.get_running_loop()
        began = self._clock()
        request = _Request(work, [None] * len(images), len(images), deadline, began, loop.create_future())
        for index, image in enumerate(images):
            self._small.waiting.put(request, _Image(request, index, image))
        expiry = None
        if deadline < math.inf:
            expiry = loop.call_later(max(deadline - began, 0.0), self._expire, request)
        try:
            self._begin_next()
            await request.done
        finally:
            # Also the way of a cancelled caller.
            self._forget(request)
            if expiry is not None:
                expiry.cancel()
        return request.results

    def close(self) -> None:
        """Refuse what waits, and end the threads when they are done with what they have begun."""
        self._closing = True
        for request in (*self._small.waiting.owners, *self._large.waiting.owners):
            self._fail(request, _closed())
        self._executor.shutdown(wait=True)

    def _admit(self, images: int) -> None:
        if self._closing:
            raise _closed()
        # The large have a limit of their own: who waits there keeps nobody here waiting.
        pending = self._small.pending
        excess = pending + images - self._limit
        # A request that alone is larger than the limit may enter an empty queue, or it never could.
        if excess > 0 and pending:
            raise QueueFullError(
                f"{pending} images wait to be decoded, {images} more would pass the limit of {self._limit}",
                retry_after=self._small.rate.seconds(excess) / self._threads_for_small(),
            )

    def _threads_for_small(self) -> int:
        return min(self._threads, self._threads + 1 - len(self._large.running))

    def _begin_next(self, *, measured: bool = False) -> None:
        """Give the free threads what is next. `measured`: a large image has just ended."""
        small, large = self._small, self._large
        # The small first, as they are soon done; they leave a thread to the large.
        while small.waiting and len(small.running) < self._threads_for_small():
            self._begin(small)
        while large.waiting:
            request, image = large.waiting.head()
            if not self._has_room_for_large(image.memory):
                return
            # Only by what was just measured: a try is what refreshes an older measurement.
            if measured and self._refuse_late(request, stretch=1.0, patience=GIVE_UP):
                continue
            self._begin(large)

    def _has_room_for_large(self, memory: int) -> bool:
        running = self._large.running
        if not running:
            return True
        threads = min(self._threads, self._threads + 1 - len(self._small.running))
        memory += sum(image.memory for image in running)
        return len(running) < threads and memory <= self._memory

    def _begin(self, lane: _Lane) -> None:
        image = lane.waiting.take()
        lane.running.add(image)
        image.began = self._clock()
        at_most = LARGE_PIXELS if lane is self._small else math.inf
        self._executor.submit(self._work, image, at_most, lane)

    def _work(self, image: _Image, at_most: float, lane: _Lane) -> None:
        """Do the work on an image, on a thread, and tell the event loop what came of it."""
        request = image.request
        result: object
        try:
            result = request.work(image.image, at_most)
        except ServingError as error:
            result = without_frames(error)
        except BaseException:  # whatever it is, somebody waits for the result
            log.exception("preprocess_failed")
            result = InferenceError("an image could not be prepared; the server's log has the reason")
        request.done.get_loop().call_soon_threadsafe(self._worked, image, lane, result)

    def _worked(self, image: _Image, lane: _Lane, result: object) -> None:
        """Take what came of an image, and give its thread another."""
        now, request = self._clock(), image.request
        lane.running.remove(image)
        lane.rate.observe(now - image.began, image.units, now)
        if isinstance(result, Large):
            image.units, image.memory, image.file = result.pixels, result.bytes, result.file_bytes
            self._put_large(request, image)
        elif not request.done.done():
            request.results[image.index] = result
            request.unfinished -= 1
            if request.unfinished == 0:
                request.done.set_result(None)
        self._begin_next(measured=lane is self._large)
        if isinstance(result, Large) and self._large.waiting.items_of(request):
            self._refuse_late(request, stretch=STRETCH, patience=1.0)

    def _put_large(self, request: _Request, image: _Image) -> None:
        """Let an image wait among the large, unless nobody waits for it or too many are there already."""
        waiting = self._large.waiting
        others = len(waiting) - len(waiting.items_of(request))
        if request.done.done():
            return
        files = image.file + sum(each.file for owner in waiting.owners for each in waiting.items_of(owner))
        if self._closing:
            self._fail(request, _closed())
        elif others and len(waiting) >= self._limit:
            _, following = waiting.head()
            self._fail(
                request,
                QueueFullError(
                    f"{len(waiting)} large images wait to be decoded, which is the limit",
                    retry_after=self._large.rate.seconds(following.units),
                ),
            )
        elif others and files > self._memory * WAITING_SHARE:
            _, following = waiting.head()
            self._fail(
                request,
                QueueFullError(
                    f"the large images that wait to be decoded would take {files / 2**20:.0f} MiB, the "
                    f"limit is {self._memory * WAITING_SHARE / 2**20:.0f}",
                    retry_after=self._large.rate.seconds(following.units),
                ),
            )
        else:
            waiting.put(request, image)

    def _refuse_late(self, request: _Request, *, stretch: float, patience: float) -> bool:
        """Refuse a request whose large images take more than `patience` times what is left; say if so.

        The wait for others is counted `stretch` times.
        """
        left = request.deadline - self._clock()
        needed = self._large_seconds(request, stretch)
        # The timer of a deadline that has just passed has its own word for it.
        if left <= 0 or needed <= patience * left:
            return False
        self._fail(
            request,
            DeadlineUnreachableError(
                f"its large images are predicted to be decoded in {needed:.3f} s, the deadline is in "
                f"{left:.3f} s",
                retry_after=needed - left,
            ),
        )
        return True

    def _large_seconds(self, request: _Request, stretch: float) -> float:
        """Return the predicted seconds until those large images of a request that wait are decoded."""
        lane = self._large
        images = lane.waiting.items_of(request)
        others = list(lane.waiting.before_last_of(request))
        own, before = [image.units for image in images], [image.units for image in others]
        # How many fit in the budget, were all of one size.
        memory = sum(image.memory for image in (*images, *others))
        fit = self._memory * (len(own) + len(before)) // max(memory, 1)
        at_once = min(max(fit, 1), self._threads)
        wait = lane.seconds_left(self._clock()) + lane.rate.seconds(sum(before))
        decoding = max(lane.rate.seconds(sum(own)) / at_once, lane.rate.seconds(max(own)))
        return stretch * wait / at_once + decoding

    def _expire(self, request: _Request) -> None:
        waited = self._clock() - request.began
        self._fail(
            request,
            DeadlineExceededError(
                f"the deadline passed after {waited:.3f} s, before its images were decoded"
            ),
        )

    def _fail(self, request: _Request, error: ServingError) -> None:
        if not request.done.done():
            request.done.set_exception(error)
        self._forget(request)

    def _forget(self, request: _Request) -> None:
        """Drop those images of a request that have not begun."""
        self._small.waiting.drop(request)
        self._large.waiting.drop(request)


def _closed() -> DrainingError:
    return DrainingError("the server is being closed")

"""DynamicBatcher: requests that arrive together leave together, and none that could not make it enters.

The rules, each tested by its name in tests/unit/test_batcher.py:

1. While the engine is busy, arrivals queue and leave together when it comes free. An idle engine does not
   wait, unless a queue delay was asked for; the DeviceScheduler gives it a moment where company has come of
   late, or where a busy event loop is bringing some.
2. Admission: a request is refused at once when the queue is full, or when its predicted finish is past
   its deadline. The prediction is the time left of the running batch, plus the batches ahead, by the
   LatencyModel, the last of them as full as the arrivals of the last second will make it (early drop:
   Shen et al., "Nexus", SOSP 2019).
3. Just before a batch is formed, requests that can no longer make it leave the queue. It is then made no
   larger than leaves its members time to spare, the more the less the last runs were as predicted. Expiry
   and cancellation do not wait for the running batch.
4. A batch counts samples, not requests. A request larger than a batch is split over several.
5. Batch-mates are strangers: one caller's cancellation or failure never touches another's answer. The
   members of a failed batch are retried one by one, once.

Everything happens on one event loop, so no locks. One exception: as a batch begins, the engine may ask for
its samples (`_Batch.settle`) from its own thread, and the loop leaves that batch alone until it has run.
"""

import asyncio
import functools
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self

import structlog

from vistazo_server import request_id, tracing
from vistazo_server.device import TIMER_RESOLUTION, DeviceScheduler, Run
from vistazo_server.errors import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    DrainingError,
    InferenceError,
    QueueFullError,
    ServingError,
)
from vistazo_server.latency import LatencyModel

Sample = Any
"""What the engine takes one of: nothing here looks inside."""


@dataclass(slots=True)
class Ran:
    """What the engine did with a batch."""

    rows: Sequence[Any]
    """One for each sample, in their order; what they are is between the engine and who asks."""
    began: float
    """In the clock's time."""
    seconds: float


RunBatch = Callable[[Callable[[], Sequence[Sample]]], Awaitable[Ran]]
"""Runs one batch. The engine calls its argument for the samples at the moment it begins, from any thread:
only then is it settled who still wants an answer. With no samples left it returns no rows. It may raise
anything: the batch has then failed."""

# Over how long arrivals are averaged: some batches of the larger networks on a CPU.
RATE_SECONDS: Final = 1.0

# A batch held back for companions starts this share of its predicted time before it would have to: runs
# vary by a few per cent, and an answer on the very deadline is late.
DELAY_SLACK: Final = 0.25

log = structlog.get_logger(__name__)


class ArrivalRate:
    """Samples per second, those that were refused included, over the last second or so."""

    __slots__ = ("_counted_at", "_rate")

    def __init__(self) -> None:
        self._rate = 0.0
        self._counted_at = -math.inf

    def count(self, samples: int, now: float) -> None:
        """Take note of an arrival."""
        self._rate = self.per_second(now) + samples / RATE_SECONDS
        self._counted_at = now

    def per_second(self, now: float) -> float:
        """Return the rate: each arrival counts less the longer ago it was, by an exponential kernel."""
        return self._rate * math.exp((self._counted_at - now) / RATE_SECONDS) if self._rate else 0.0


class BatchObserver(Protocol):
    """Told of each run; the server's metrics."""

    def batch_ran(self, *, batch_size: int, seconds: float) -> None:
        """Take note of a batch of `batch_size` samples that was run in `seconds`."""


# Not frozen: one is made for each request, and a frozen one takes three times as long.
@dataclass(slots=True)
class Answer:
    """The rows of one request and where its time went."""

    rows: Sequence[Any]
    """One output row for each sample, in the request's order."""
    batch_size: int
    """Samples in the largest batch that its samples rode in."""
    queue_seconds: float
    """From admission to the start of its first batch."""
    compute_seconds: float
    """Summed over its batches."""


@dataclass(slots=True, eq=False)
class PendingRequest:
    """One admitted request, from the door to its answer."""

    samples: Sequence[Sample]
    deadline: float
    """In the clock's time; infinity: none."""
    enqueued_at: float
    answer: asyncio.Future[Answer]
    rows: list[Any]
    request_id: str = ""
    """For the log."""
    dispatched: int = 0
    """Samples that left the queue for a batch."""
    answered: int = 0
    """Samples whose row has come."""
    started_at: float | None = None
    batch_size: int = 0
    compute_seconds: float = 0.0

    @property
    def waiting(self) -> int:
        """Samples still in the queue."""
        return len(self.samples) - self.dispatched


@dataclass(slots=True)
class _Part:
    """Consecutive samples of one request that ride in one batch."""

    request: PendingRequest
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def samples(self) -> Sequence[Sample]:
        return self.request.samples[self.start : self.stop]

    def deliver(self, rows: Sequence[Any], *, batch_size: int, seconds: float) -> None:
        """Give the request its rows; with the last of them, its answer."""
        request = self.request
        request.rows[self.start : self.stop] = rows
        request.answered += len(rows)
        request.batch_size = max(request.batch_size, batch_size)
        request.compute_seconds += seconds
        # The caller may have gone, or its deadline may have passed, while the batch ran.
        if request.answered < len(request.samples) or request.answer.done():
            return
        request.answer.set_result(
            Answer(
                rows=request.rows,
                batch_size=request.batch_size,
                queue_seconds=max((request.started_at or 0.0) - request.enqueued_at, 0.0),
                compute_seconds=request.compute_seconds,
            )
        )


@dataclass(slots=True)
class _Batch:
    parts: list[_Part] = field(default_factory=list)
    size: int = 0

    def add(self, part: _Part) -> None:
        self.parts.append(part)
        self.size += part.size

    def settle(self, now: float) -> Sequence[Sample]:
        """Return the samples that are still wanted; called by the engine as it begins.

        A batch may wait behind another; nobody who was cancelled or expired meanwhile costs a run.
        """
        self.parts = [
            part for part in self.parts if not part.request.answer.done() and part.request.deadline > now
        ]
        self.size = sum(part.size for part in self.parts)
        for part in self.parts:
            if part.request.started_at is None:
                part.request.started_at = now
        return [sample for part in self.parts for sample in part.samples]

    def deliver(self, ran: Ran) -> None:
        """Give each member its rows."""
        at = 0
        for part in self.parts:
            part.deliver(ran.rows[at : at + part.size], batch_size=self.size, seconds=ran.seconds)
            at += part.size


class DynamicBatcher:
    """Forms batches for one model and runs them when the device's scheduler says so.

    Use as `async with`; leaving it refuses what comes and finishes what was admitted. `max_batch_size` and
    `queue_limit` are in samples, `queue_delay` in seconds, deadlines in the clock's time.
    """

    def __init__(
        self,
        run_batch: RunBatch,
        *,
        device: DeviceScheduler,
        max_batch_size: int,
        queue_limit: int,
        queue_delay: float = 0.0,
        latency: LatencyModel | None = None,
        observer: BatchObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.queue_limit = queue_limit
        self.latency = latency or LatencyModel()
        self._run_batch = run_batch
        self._device = device
        self._queue_delay = queue_delay
        self._observer = observer
        # Not the loop's own time: uvloop's is rounded to milliseconds and stands still within a turn.
        self._clock = clock
        # In order of arrival; a request leaves from the middle in O(1) when it is cancelled or expires.
        self._queue: OrderedDict[PendingRequest, None] = OrderedDict()
        self._queued_samples = 0
        self._arrivals = ArrivalRate()
        self._in_flight: set[PendingRequest] = set()
        # One timer for the earliest deadline in flight, not one for each request.
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = math.inf
        self._closing = False

    async def __aenter__(self) -> Self:
        self._device.register(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._device.notify()  # a queue delay ends now
        while self._in_flight:
            await asyncio.wait([request.answer for request in self._in_flight])
            await asyncio.sleep(0)  # let their callers take themselves off the list
        if self._expiry is not None:
            self._expiry.cancel()
        self._device.unregister(self)

    @property
    def queued_samples(self) -> int:
        """Samples that wait for a batch."""
        return self._queued_samples

    @property
    def in_flight(self) -> int:
        """Requests that were admitted and whose callers have no answer yet."""
        return len(self._in_flight)

    def predicted_seconds(self, samples: int) -> float:
        """Return the predicted time from now to the answer of a request of `samples` samples.

        Its batch will fill up with those who arrive while it waits, and then take longer. Were that left out,
        under overload everybody in the queue would be promised the time of a small batch, and small batches
        would have to be run to keep it (simulated at twice the capacity: 3 samples instead of 8).

        The wait is stretched by the latency model's margin. Without it, those at the head of a long queue
        have no slack left: a run that takes a little longer makes them late, and what was spent on them is
        lost. A shorter queue costs nothing while it is never empty.
        """
        ahead = self._device.seconds_ahead(self)
        wait = ahead + self.backlog()
        if wait == 0.0:
            return self._least_seconds(samples)
        together = self._queued_samples + samples
        to_fill = -together % self.max_batch_size
        company = min(to_fill, int(self._arrivals.per_second(self._clock()) * wait))
        return ahead + self._device_seconds(together + company) + wait * self.latency.margin

    def check_admission(self, samples: int, deadline: float) -> None:
        """Raise what `infer` would raise now; lets a caller refuse before it prepares the samples.

        Raises DrainingError, QueueFullError, DeadlineUnreachableError or DeadlineExceededError.
        """
        try:
            self._admit(samples, deadline)
        except ServingError:
            self._arrivals.count(samples, self._clock())
            raise

    def _admit(self, samples: int, deadline: float) -> None:
        if self._closing:
            raise DrainingError("the model is being closed")
        left = deadline - self._clock()
        if left <= 0:
            raise DeadlineExceededError("the deadline passed before the request was queued")
        excess = self._queued_samples + samples - self.queue_limit
        # A request that alone is larger than the limit may enter an empty queue, or it never could.
        if excess > 0 and self._queued_samples:
            raise QueueFullError(
                f"{self._queued_samples} samples wait, {samples} more would pass the limit of "
                f"{self.queue_limit}",
                retry_after=self._device.seconds_ahead(self) + self._device_seconds(excess),
            )
        predicted = self.predicted_seconds(samples)
        if predicted > left:
            raise DeadlineUnreachableError(
                f"the answer is predicted in {predicted:.3f} s, the deadline is in {left:.3f} s",
                retry_after=predicted - left,
            )

    async def infer(self, samples: Sequence[Sample], *, deadline: float = math.inf) -> Answer:
        """Return the rows of `samples`: at least one, all of the model's input shape and dtype.

        Raises OverloadedError when refused, DeadlineExceededError when it expired while it waited,
        InferenceError when the engine failed on it twice, DrainingError when the model is being closed.
        """
        now = self._clock()
        self._arrivals.count(len(samples), now)
        self._admit(len(samples), deadline)
        loop = asyncio.get_running_loop()
        request = PendingRequest(
            samples=samples,
            deadline=deadline,
            enqueued_at=now,
            answer=loop.create_future(),
            rows=[None] * len(samples),
            request_id=request_id.current(),
        )
        if deadline < self._expires_at:
            self._arm_expiry(deadline)
        self._queue[request] = None
        self._in_flight.add(request)
        was_empty, was_full = self._queued_samples == 0, self.has_full_batch()
        self._queued_samples += len(samples)
        if was_empty or (self.has_full_batch() and not was_full):
            self._device.notify()
        try:
            return await request.answer
        finally:
            # Also the way of a cancelled caller: its samples leave the queue now, not when they are reached.
            self._leave_queue(request)
            self._in_flight.discard(request)
            if tracing.current() is not None:
                self._trace(request)

    def _trace(self, request: PendingRequest) -> None:
        """Tell the stages of a request that ended, however it did; one that no batch took has no compute."""
        samples = len(request.samples)
        tracing.stage("queue", request.enqueued_at, request.started_at, clock=self._clock, samples=samples)
        if request.started_at is not None:
            size = request.batch_size
            tracing.stage("compute", request.started_at, clock=self._clock, samples=samples, batch_size=size)

    # What the device's scheduler asks for.

    def ready_at(self) -> float:
        """Return when the next batch may start: now, or when the oldest request sat out the queue delay."""
        oldest = next(iter(self._queue), None)
        if oldest is None:
            return math.inf
        if self._queue_delay == 0.0 or self._closing or self.has_full_batch():
            return -math.inf
        # A delay that would cost somebody the deadline ends early.
        needed = self.latency.seconds(self._queued_samples) * (1 + DELAY_SLACK)
        latest_start = self.earliest_deadline() - needed
        return min(oldest.enqueued_at + self._queue_delay, latest_start)

    def earliest_deadline(self) -> float:
        """Return the earliest deadline in the queue; infinity when there is none."""
        return min((request.deadline for request in self._queue), default=math.inf)

    def backlog(self) -> float:
        """Return the predicted seconds of device time that the queue stands for."""
        return self._device_seconds(self._queued_samples)

    def has_full_batch(self) -> bool:
        """Return whether as many samples wait as one batch takes."""
        return self._queued_samples >= self.max_batch_size

    def next_run(self, *, begins_at: float) -> Run | None:
        """Take the next batch, which begins at `begins_at`: oldest first, and only who can make it."""
        batch = _Batch()
        tightest = math.inf
        # As a wait is at admission: a run that by the estimate only just makes it is late half the time.
        stretch = 1 + self.latency.margin
        is_alone = len(self._queue) == 1 and begins_at <= self._clock()
        needed = self._least_seconds if is_alone else self._device_seconds
        for request in list(itertools.islice(self._queue, self.max_batch_size)):
            if begins_at + needed(request.waiting) > request.deadline:
                self._drop(request)
                continue
            size = min(batch.size + request.waiting, self.max_batch_size)
            tightest = min(tightest, request.deadline)
            # Nobody's promise is risked to make the batch larger; who is left goes next.
            if batch.parts and begins_at + stretch * self.latency.seconds(size) > tightest:
                break
            self._take(request, size - batch.size, batch)
            if batch.size == self.max_batch_size:
                break
        if not batch.parts:
            return None
        return Run(seconds=self.latency.seconds(batch.size), work=self._run(batch))

    def _take(self, request: PendingRequest, count: int, batch: _Batch) -> None:
        batch.add(_Part(request, request.dispatched, request.dispatched + count))
        request.dispatched += count
        self._queued_samples -= count
        if request.waiting == 0:
            del self._queue[request]

    async def _run(self, batch: _Batch) -> Callable[[], None]:
        """Run a batch, and return what gives each member its rows."""
        try:
            ran = await self._ran(batch)
        except Exception as error:
            log.warning("batch_failed", batch_size=batch.size, requests=len(batch.parts), exc_info=error)
            await self._retry_one_by_one(batch)
            return lambda: None
        return functools.partial(batch.deliver, ran)

    async def _ran(self, batch: _Batch) -> Ran:
        ran = await self._run_batch(lambda: batch.settle(self._clock()))
        if len(ran.rows) != batch.size:
            raise RuntimeError(f"the engine returned {len(ran.rows)} rows for {batch.size} samples")
        if batch.size:
            self.latency.observe(batch.size, ran.seconds)
            if self._observer is not None:
                self._observer.batch_ran(batch_size=batch.size, seconds=ran.seconds)
        return ran

    async def _retry_one_by_one(self, batch: _Batch) -> None:
        """Find out who of a failed batch can be answered: each member alone, once."""
        for part in batch.parts:
            alone = _Batch([part], part.size)
            try:
                ran = await self._ran(alone)
            except Exception as error:
                log.exception("request_failed", samples=part.size, request_id=part.request.request_id)
                failure = InferenceError("the engine failed on this request; the server's log has the reason")
                failure.__cause__ = error
                self._fail(part.request, failure)
                continue
            if alone.size:
                part.deliver(ran.rows, batch_size=part.size, seconds=ran.seconds)

    def _least_seconds(self, samples: int) -> float:
        """Return the time of `samples` on a free engine, by the fastest runs so far.

        By the estimate, an hour of slow runs could make it refuse everybody for ever: without a run, the
        estimate never recovers.
        """
        full, rest = divmod(samples, self.max_batch_size)
        return full * self.latency.fastest(self.max_batch_size) + self.latency.fastest(rest)

    def _device_seconds(self, samples: int) -> float:
        full, rest = divmod(samples, self.max_batch_size)
        return full * self.latency.seconds(self.max_batch_size) + self.latency.seconds(rest)

    def _arm_expiry(self, deadline: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at = deadline
        self._expiry = asyncio.get_running_loop().call_later(deadline - self._clock(), self._expire_due)

    def _expire_due(self) -> None:
        """Fail every request whose deadline has passed, and wait for the next."""
        self._expiry, self._expires_at = None, math.inf
        due = self._clock() + TIMER_RESOLUTION
        for request in [request for request in self._in_flight if request.deadline <= due]:
            self._expire(request)
        following = min(
            (request.deadline for request in self._in_flight if request.deadline > due), default=math.inf
        )
        if following < math.inf:
            self._arm_expiry(following)

    def _expire(self, request: PendingRequest) -> None:
        waited = self._clock() - request.enqueued_at
        where = "in the queue" if request.started_at is None else "while its batch ran"
        self._fail(request, DeadlineExceededError(f"the deadline passed after {waited:.3f} s, {where}"))

    def _drop(self, request: PendingRequest) -> None:
        left, needed = request.deadline - self._clock(), self._device_seconds(request.waiting)
        self._fail(
            request,
            DeadlineExceededError(
                f"dropped before its run: {left:.3f} s were left and it takes {needed:.3f} s"
            ),
        )

    def _fail(self, request: PendingRequest, error: ServingError) -> None:
        if not request.answer.done():
            request.answer.set_exception(error)
        self._leave_queue(request)

    def _leave_queue(self, request: PendingRequest) -> None:
        if request in self._queue:
            del self._queue[request]
            self._queued_samples -= request.waiting

"""DynamicBatcher: requests that arrive together leave together, and none that could not make it enters.

The rules, each tested by its name in tests/server/batching/test_batcher.py:

1. While the engine is busy, arrivals queue and leave together when it comes free. An idle engine does not
   wait, unless a queue delay was asked for; but those who come back after a batch are given a moment to be as
   many as they were in it (DeviceScheduler).
2. Admission: a request is refused at once when the queue is full, when its predicted finish is past its
   deadline, or when it would make somebody late who was promised an answer. The prediction counts the running
   batch and what will be served earlier: its own model's queue, and of the other models what is due earlier.
   It goes by the LatencyModel, the last batch as full as the arrivals of the last second will make it (early
   drop: Shen et al., "Nexus", SOSP 2019).
3. No prediction is believed for ever. An idle engine tries what it could do at its measured pace, however
   slow it was of late; and what by the prediction cannot be done is tried, one request at a time, when no run
   has confirmed the prediction for a while.
4. Just before a batch is formed, requests that can no longer make it leave the queue. It is then made no
   larger than leaves its members time to spare, the more the less the last runs were as predicted. Expiry
   and cancellation do not wait for the running batch.
5. A batch counts samples, not requests. A request larger than a batch is split over several.
6. Batch-mates are strangers: one caller's cancellation or failure never touches another's answer. The
   members of a failed run are retried one by one, once. What a caller is told of a failure carries nothing of
   the engine: no traceback, cause or context, and so no frame of anybody else's.

Everything happens on one event loop, so no locks. One exception: as a batch begins, the engine may ask for
its samples (`Batch.settle`) from its own thread, and the loop leaves that batch alone until it has run.
"""

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

import structlog

from vistazo_server.batching.admission import Admission
from vistazo_server.batching.batch import Answer, Batch, Part, PendingRequest, Ran, Sample
from vistazo_server.batching.device import TIMER_RESOLUTION, DeviceScheduler, PlannedRun, Run
from vistazo_server.batching.latency import LatencyModel
from vistazo_server.batching.request_queue import RequestQueue
from vistazo_server.errors import (
    DeadlineExceededError,
    DrainingError,
    InferenceError,
    ServingError,
)
from vistazo_server.telemetry import request_id, tracing

RunBatch = Callable[[Callable[[], Sequence[Sample]]], Awaitable[Ran]]
"""Runs one batch. The engine calls its argument for the samples at the moment it begins, from any thread:
only then is it settled who still wants an answer. With no samples left it returns no rows. It may raise
anything: the batch has then failed."""

# A batch held back for companions starts this share of its predicted time before it would have to, and no
# less than so many seconds: runs vary, timers come late, and an answer on the very deadline is late.
DELAY_SLACK: Final = 0.25
LEAST_DELAY_SLACK: Final = 0.01

log = structlog.get_logger(__name__)


class BatchObserver(Protocol):
    """Told of each run; the server's metrics."""

    def batch_ran(self, *, batch_size: int, seconds: float) -> None:
        """Take note of a batch of `batch_size` samples that was run in `seconds`."""


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
        self.expected_samples = 0
        """Samples in the batch that was formed last, if several callers rode in it: they may come back
        together. 0 where it would be no use to wait for them, or a queue delay says how long to wait."""
        self._run_batch = run_batch
        self._device = device
        self._queue_delay = queue_delay
        self._observer = observer
        # Not the loop's own time: uvloop's is rounded to milliseconds and stands still within a turn.
        self._clock = clock
        self._queue = RequestQueue(self.latency, max_batch_size=max_batch_size)
        self._admission = Admission(
            device=device,
            queue=self._queue,
            latency=self.latency,
            max_batch_size=max_batch_size,
            queue_limit=queue_limit,
            clock=clock,
        )
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
        return self._queue.samples

    @property
    def in_flight(self) -> int:
        """Requests that were admitted and whose callers have no answer yet."""
        return len(self._in_flight)

    def predicted_seconds(self, samples: int) -> float:
        """Return the predicted seconds to the answer of `samples` samples that are due after all others.

        Any thread may ask.
        """
        return self._admission.predicted_seconds(self, samples)

    def check_admission(self, samples: int, deadline: float, *, ready_in: float = 0.0) -> None:
        """Raise what `infer` would raise now; lets a caller refuse before it prepares the samples.

        `ready_in`: seconds until they are prepared. Raises DrainingError, QueueFullError,
        DeadlineUnreachableError or DeadlineExceededError.
        """
        try:
            self._admit(samples, deadline, ready_in)
        except ServingError:
            self._admission.arrived(samples, self._clock())
            raise

    def _admit(self, samples: int, deadline: float, ready_in: float) -> bool:
        """Return whether a request that is let in is a trial; raise when it is not let in."""
        if self._closing:
            raise DrainingError("the model is being closed")
        return self._admission.check(self, samples, deadline, ready_in=ready_in)

    async def infer(self, samples: Sequence[Sample], *, deadline: float = math.inf) -> Answer:
        """Return the rows of `samples`: at least one, all of the model's input shape and dtype.

        Raises OverloadedError when refused, DeadlineExceededError when it expired while it waited,
        InferenceError when the engine failed on it twice, DrainingError when the model is being closed.
        """
        now = self._clock()
        self._admission.arrived(len(samples), now)
        is_trial = self._admit(len(samples), deadline, 0.0)
        if is_trial:
            self._admission.confirmed(self._device_seconds(len(samples)))
        request = PendingRequest(
            samples=samples,
            deadline=deadline,
            enqueued_at=now,
            answer=asyncio.get_running_loop().create_future(),
            rows=[None] * len(samples),
            request_id=request_id.current(),
            is_trial=is_trial,
        )
        self._enqueue(request)
        try:
            return await request.answer
        finally:
            # Also the way of a cancelled caller: its samples leave the queue now, not when they are reached.
            self._queue.drop(request)
            self._in_flight.discard(request)
            if tracing.current() is not None:
                self._trace(request)
            # An error's traceback keeps this frame, which must not lead back to the error.
            del request

    def _enqueue(self, request: PendingRequest) -> None:
        if request.deadline < self._expires_at:
            self._arm_expiry(request.deadline)
        before = self._queue.samples
        self._in_flight.add(request)
        is_earliest = self._queue.put(request)
        now_queued = self._queue.samples
        # What the scheduler may be waiting for: somebody, as many as the last time, or a full batch.
        if (
            before == 0
            or (is_earliest and self._queue_delay > 0)  # which may have to end sooner
            or before < self.expected_samples <= now_queued
            or before < self.max_batch_size <= now_queued
        ):
            self._device.notify()

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
        oldest = self._queue.oldest()
        if oldest is None:
            return math.inf
        if self._queue_delay == 0.0 or self._closing or self.has_full_batch():
            return -math.inf
        # A delay that would cost somebody the deadline ends early.
        needed = self.latency.seconds(self._queue.samples)
        latest_start = self.earliest_deadline() - needed - max(DELAY_SLACK * needed, LEAST_DELAY_SLACK)
        return min(oldest.enqueued_at + self._queue_delay, latest_start)

    def earliest_deadline(self) -> float:
        """Return the earliest deadline in the queue; infinity when there is none."""
        return self._queue.earliest_deadline()

    def backlog(self) -> float:
        """Return the predicted seconds of device time that the queue stands for."""
        return self._device_seconds(self._queue.samples)

    def has_full_batch(self) -> bool:
        """Return whether as many samples wait as one batch takes."""
        return self._queue.samples >= self.max_batch_size

    def plan(self) -> Sequence[PlannedRun]:
        """Return the batches that those who wait would make, in order."""
        return self._queue.plan()

    def next_run(self, *, begins_at: float) -> Run | None:
        """Take the next batch, which begins at `begins_at`: oldest first, and only who can make it."""
        batch = Batch()
        tightest = math.inf
        # As a wait is at admission: a run that by the estimate only just makes it is late half the time.
        stretch = 1 + self.latency.margin
        for request in self._queue.head(self.max_batch_size):
            if not request.is_trial and begins_at + self._device_seconds(request.waiting) > request.deadline:
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
        self.expected_samples = batch.size if len(batch.parts) > 1 and not self._queue_delay else 0
        return Run(seconds=self.latency.seconds(batch.size), work=self._run(batch))

    def _take(self, request: PendingRequest, count: int, batch: Batch) -> None:
        batch.add(Part(request, request.dispatched, request.dispatched + count))
        self._queue.take(request, count)

    # Running

    async def _run(self, batch: Batch) -> Callable[[], None]:
        """Run a batch, and return what gives each member its rows."""
        try:
            ran = await self._ran(batch)
        except Exception as error:
            log.warning("batch_failed", batch_size=batch.size, requests=len(batch.parts), exc_info=error)
            await self._retry_one_by_one(batch.parts)
            return lambda: None
        if failed := batch.failed(ran):
            # The others need not wait for those.
            batch.deliver(ran)
            await self._retry_one_by_one(failed)
            return lambda: None
        return functools.partial(batch.deliver, ran)

    async def _ran(self, batch: Batch) -> Ran:
        ran = await self._run_batch(lambda: batch.settle(self._clock()))
        if len(ran.rows) != batch.size:
            raise RuntimeError(f"the engine returned {len(ran.rows)} rows for {batch.size} samples")
        succeeded = ran.succeeded
        if succeeded == batch.size > 0:
            # What a run takes that failed in part says nothing about one that does not.
            self.latency.observe(batch.size, ran.seconds)
            self._queue.forget_plan()
            self._admission.confirmed(ran.seconds)
        if succeeded and self._observer is not None:
            self._observer.batch_ran(batch_size=succeeded, seconds=ran.seconds)
        return ran

    async def _retry_one_by_one(self, parts: Sequence[Part]) -> None:
        """Find out who of a failed batch can be answered: each member alone, once."""
        for part in parts:
            alone = Batch([part], part.size)
            try:
                ran = await self._ran(alone)
                ran.raise_failure()
            except Exception:
                log.exception("request_failed", samples=part.size, request_id=part.request.request_id)
                self._fail(
                    part.request,
                    InferenceError("the engine failed on this request; the server's log has the reason"),
                )
                continue
            alone.deliver(ran)

    def _device_seconds(self, samples: int) -> float:
        return self.latency.seconds_in_batches(samples, self.max_batch_size)

    # The ends of a request

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
        self._queue.drop(request)

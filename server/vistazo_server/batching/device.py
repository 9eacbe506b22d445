"""DeviceScheduler: batches on a device that several models share, earliest deadline first."""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import structlog

# What is due within this many seconds is due: timers are no finer, and waiting out a rounding error would
# wake up just as early again.
TIMER_RESOLUTION: Final = 0.0005

# Beside those that run, one batch is ready to follow without a gap. More would only decide earlier who rides.
FORMED_AHEAD: Final = 1

# Before an idle device begins, the event loop goes round until so many turns in a row had hardly any work and
# brought nobody: where the loop is the limit, requests are on their way through it, and in larger batches
# each costs less of it. The more where the last batch had company; a request takes several turns through
# grpc.
TURNS_ALONE: Final = 2
TURNS_IN_COMPANY: Final = 16
IDLE_TURN_SECONDS: Final = 50e-6
# And this is the longest that it goes on.
GATHER_SECONDS: Final = 0.01
# Callers that were answered together come back together, within a moment that is short beside a network's
# round trip. An idle device gives them this long to be as many as the last time, where a run takes at least
# so many times as long: without it, the first of them rides alone and all others wait for its run.
COMPANY_SECONDS: Final = 0.001
COMPANY_RUN: Final = 10

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """A batch that was formed and is to be run."""

    seconds: float
    """Predicted."""
    work: Coroutine[Any, Any, Callable[[], None]]
    """Runs it, and returns what hands out the answers."""


@dataclass(slots=True, eq=False)
class _InFlight:
    """A run that was given to the engine."""

    seconds: float
    """Predicted."""
    began: float | None
    """None while it waits for those before it."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A batch that a queue would form next, were nobody to come or go."""

    samples: int
    seconds: float
    """Predicted."""
    due: float
    """The earliest deadline of those who ride in it, in the clock's time."""


class DeviceQueue(Protocol):
    """One model's queue, as the scheduler sees it."""

    @property
    def queued_samples(self) -> int:
        """Samples that wait."""

    @property
    def expected_samples(self) -> int:
        """Samples that may come back together, as they left in the last batch."""

    def ready_at(self) -> float:
        """Return when the next batch may start, in the clock's time; infinity when nothing waits."""

    def has_full_batch(self) -> bool:
        """Return whether waiting could not make the next batch larger."""

    def earliest_deadline(self) -> float:
        """Return the earliest deadline that waits."""

    def backlog(self) -> float:
        """Return the predicted seconds of device time that wait."""

    def plan(self) -> Sequence[PlannedRun]:
        """Return the batches that those who wait would make, in order."""

    def next_run(self, *, begins_at: float) -> Run | None:
        """Form a batch that is predicted to begin at `begins_at`; None when nobody could make it."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a newcomer can expect, and what it would cost others."""

    wait: float
    """Predicted seconds until the last batch that it rides in begins."""
    breaks: float
    """By how many seconds it would make late whoever was promised an answer and would be late by most; 0.0:
    nobody."""


class DeviceScheduler:
    """Decides which model's batch runs next on one device. Use as `async with`.

    With a scheduler for each model, models on one device slow one another down and starve whoever is
    unlucky (the reason for TensorFlow Serving's SharedBatchScheduler). Here the queue whose earliest promise
    is due first goes next. While a batch runs, the next one is formed ahead if it is full; one that could
    still grow is formed when the device comes free, so that late arrivals may join it. An idle device gives
    those who come back after a batch a moment to be as many as before, while that costs no deadline.

    `clock` returns seconds and must run like the event loop's own (`time.monotonic`, unless the loop's time
    is virtual). `on_failure` is called when the scheduling itself ends by a bug: from then on nothing is run.
    The engine must begin what it is given in the order given, `instances` at a time.
    """

    def __init__(
        self,
        *,
        instances: int = 1,
        clock: Callable[[], float] = time.monotonic,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self._instances = instances
        self._clock = clock
        self._on_failure = on_failure
        self._queues: list[DeviceQueue] = []
        self._changed = asyncio.Event()
        # In the order in which the engine was given them.
        self._in_flight: list[_InFlight] = []
        self._runs: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._schedule(), name="device-scheduler")
        self._task.add_done_callback(self._scheduling_ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._runs, return_exceptions=True)

    def register(self, queue: DeviceQueue) -> None:
        """Add a model's queue."""
        self._queues.append(queue)

    def unregister(self, queue: DeviceQueue) -> None:
        """Forget a model's queue; it should be empty."""
        self._queues.remove(queue)

    def notify(self) -> None:
        """Say that a queue has become ready or full, or may be ready earlier than it was."""
        self._changed.set()

    def seconds_ahead(self, queue: DeviceQueue) -> float:
        """Return the predicted seconds before the device could begin with `queue`, were it the last served.

        The time left of the runs in flight and the backlog of every other queue. Any thread may ask.
        """
        ahead = self._residual()
        # A loop, not sum(), and nothing is asked of an empty queue: every request comes through here, and
        # there may be many models.
        for other in list(self._queues):
            if other is not queue and other.queued_samples:
                ahead += other.backlog()
        return ahead

    def serves_others(self, queue: DeviceQueue) -> bool:
        """Return whether another queue has work that waits."""
        return any(other.queued_samples for other in self._queues if other is not queue)

    def forecast(self, queue: DeviceQueue, plan: Sequence[PlannedRun]) -> Forecast:
        """Return what the last run of `plan` can expect, which is what `queue` would have with a newcomer."""
        others = [other.plan() for other in self._queues if other is not queue and other.queued_samples]
        start = self._clock() + self._residual()
        without, then = self._ends([*others, queue.plan()], start), self._ends([*others, plan], start)
        breaks = 0.0
        for runs, ended, ends in zip(others, without, then, strict=False):
            for run, before, after in zip(runs, ended, ends, strict=True):
                # Who would be late in any case is not made late by the newcomer.
                if before <= run.due < after:
                    breaks = max(breaks, after - run.due)
        return Forecast(then[-1][-1] - plan[-1].seconds / self._instances - self._clock(), breaks)

    def _ends(self, plans: Sequence[Sequence[PlannedRun]], start: float) -> list[list[float]]:
        """Return when each run of each queue would end, by what is due first."""
        # A queue's turn comes by the earliest deadline of all that wait in it, not of its next batch alone.
        urgency = [
            list(itertools.accumulate((run.due for run in reversed(plan)), min))[::-1] for plan in plans
        ]
        ends: list[list[float]] = [[] for _ in plans]
        left = {number for number, plan in enumerate(plans) if plan}
        while left:
            number = min(left, key=lambda number: urgency[number][len(ends[number])])
            start += plans[number][len(ends[number])].seconds / self._instances
            ends[number].append(start)
            if len(ends[number]) == len(plans[number]):
                left.remove(number)
        return ends

    def _residual(self, *, at_best: bool = False) -> float:
        """Return the predicted seconds until the runs in flight have ended.

        A run that is overdue is expected to take as long again as it is late, so that nobody is promised much
        behind one that hangs; at best it ends now.
        """
        left = 0.0
        for run in list(self._in_flight):
            if run.began is None or run.seconds == 0.0:  # nothing is known yet of how long one takes
                left += run.seconds
            else:
                remaining = run.began + run.seconds - self._clock()
                left += max(remaining, 0.0) if at_best else abs(remaining)
        return left / self._instances

    async def _schedule(self) -> None:
        while True:
            queue = self._choose()
            if queue is None:
                await self._wait_for_change()
                continue
            if not self._in_flight:
                await self._gather(queue)
                if self._expects_company(queue):
                    await self._wait_for_company(queue)
            if self._start_next(queue):
                # Let it hand its batch to the engine before the next is looked for.
                await asyncio.sleep(0)

    def _scheduling_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        log.error("scheduling_ended", exc_info=task.exception(), meaning="no request is answered any more")
        if self._on_failure is not None:
            self._on_failure()

    async def _gather(self, queue: DeviceQueue) -> None:
        """Return when the batch is full, the loop has nothing else to do, or its members may not wait."""
        turns = TURNS_IN_COMPANY if queue.expected_samples else TURNS_ALONE
        now, idle_turns = self._clock(), 0
        until = now + GATHER_SECONDS
        while idle_turns < turns and now < until:
            queued, began = queue.queued_samples, now
            if idle_turns == 0 and not self._has_time(queue):
                return
            await asyncio.sleep(0)
            now = self._clock()
            is_idle = queue.queued_samples == queued and now - began < IDLE_TURN_SECONDS
            idle_turns = idle_turns + 1 if is_idle else 0

    def _has_time(self, queue: DeviceQueue) -> bool:
        """Return whether the batch can grow, and nobody's deadline is in the way of a moment more."""
        if queue.has_full_batch():
            return False
        return queue.earliest_deadline() - self._clock() - 2 * queue.backlog() >= COMPANY_SECONDS

    def _expects_company(self, queue: DeviceQueue) -> bool:
        """Return whether an idle device should wait until `queue` is as long as its last batch was."""
        if self._in_flight or queue.queued_samples >= queue.expected_samples:
            return False
        return queue.backlog() >= COMPANY_RUN * COMPANY_SECONDS and self._has_time(queue)

    async def _wait_for_company(self, queue: DeviceQueue) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COMPANY_SECONDS):
                while self._expects_company(queue):
                    self._changed.clear()
                    await self._changed.wait()

    def _start_next(self, queue: DeviceQueue) -> bool:
        """Start the queue's next run, and return whether it had one."""
        run = queue.next_run(begins_at=self._clock() + self._residual(at_best=True))
        if run is None:
            return False
        begins = len(self._in_flight) < self._instances
        in_flight = _InFlight(run.seconds, self._clock() if begins else None)
        self._in_flight.append(in_flight)
        task = asyncio.create_task(self._watch(run, in_flight))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)
        return True

    def _choose(self) -> DeviceQueue | None:
        if len(self._in_flight) >= self._instances + FORMED_AHEAD:
            return None
        due = self._clock() + TIMER_RESOLUTION
        ready = [queue for queue in self._queues if queue.ready_at() <= due]
        if not ready:
            return None
        chosen = min(ready, key=lambda queue: queue.earliest_deadline()) if len(ready) > 1 else ready[0]
        is_busy = len(self._in_flight) >= self._instances
        return None if is_busy and not chosen.has_full_batch() else chosen

    async def _watch(self, run: Run, in_flight: _InFlight) -> None:
        try:
            try:
                hand_out = await run.work
            finally:
                self._ended(in_flight)
            try:
                # The engine first: to encode and send a batch's answers takes the loop milliseconds.
                self._follow()
            finally:
                hand_out()
        except Exception:
            # A bug in one queue must not stop the device for all.
            log.exception("run_failed")

    def _ended(self, in_flight: _InFlight) -> None:
        self._in_flight.remove(in_flight)
        # The engine keeps the order: the first that waited begins now.
        following = next((run for run in self._in_flight if run.began is None), None)
        if following is not None:
            following.began = self._clock()
        self._changed.set()

    def _follow(self) -> None:
        """Start the next run at once, unless those who are about to come back had better ride along."""
        queue = self._choose()
        if queue is None or self._expects_company(queue):
            return
        # Beside a short run, what the loop has to do is long: it is let do that first (`_gather`).
        is_short = queue.backlog() < COMPANY_RUN * COMPANY_SECONDS
        if self._in_flight or not is_short or not queue.expected_samples or queue.has_full_batch():
            self._start_next(queue)

    async def _wait_for_change(self) -> None:
        until = min((queue.ready_at() for queue in self._queues), default=math.inf)
        self._changed.clear()
        # While all instances are busy, the end of a run wakes this up; a queue that is due must not.
        is_busy = len(self._in_flight) >= self._instances
        if is_busy or until == math.inf:
            await self._changed.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until - self._clock()):
                await self._changed.wait()

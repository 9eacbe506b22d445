"""DeviceScheduler: batches on a device that several models share, earliest deadline first."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import structlog

# What is due within this many seconds is due: timers are no finer, and waiting out a rounding error would
# wake up just as early again.
TIMER_RESOLUTION: Final = 0.0005

# Beside those that run, one batch is ready to follow without a gap. More would only decide earlier who rides.
FORMED_AHEAD: Final = 1

# Callers that were answered together come back together, within a moment that is short beside a network's
# round trip. An idle device gives them this long, if that has paid of late: without it, the first of them
# rides alone and all others wait for its run.
COMPANY_SECONDS: Final = 0.001
# Where the event loop's thread is this busy, requests wait in any case, if not here then on their way here,
# and in larger batches each costs less of it. Then an idle device is given nothing while the loop still has
# other work, which brings more requests, but for no longer than the other.
SATURATED_SHARE: Final = 0.8
SATURATED_SECONDS: Final = 0.01
# The loop has no other work when so many of its turns in a row took less than this each, and brought nobody.
# A request takes several on its way through grpc's threads. Requests/s of LeNet with 4, 16 and 64 callers:
# 1,238, 1,688 and 1,594 with 3 idle turns; 1,186, 1,713 and 1,799 with 8; 1,086, 1,720 and 1,922 with 20; and
# with waits by the clock, 1 ms each, 826, 1,316 and 1,948.
IDLE_TURNS: Final = 16
IDLE_TURN_SECONDS: Final = 50e-6
# Over how long the loop's load is measured.
LOAD_SECONDS: Final = 0.05
# Weight of the last wait in the average of whether it paid.
COMPANY_WEIGHT: Final = 0.2
# Once in so many starts the wait is made to find out; each time in vain, twice as seldom, down to the other.
FIRST_PROBE: Final = 16
LAST_PROBE: Final = 1024

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


class DeviceQueue(Protocol):
    """One model's queue, as the scheduler sees it."""

    @property
    def queued_samples(self) -> int:
        """Samples that wait."""

    def ready_at(self) -> float:
        """Return when the next batch may start, in the clock's time; infinity when nothing waits."""

    def has_full_batch(self) -> bool:
        """Return whether waiting could not make the next batch larger."""

    def earliest_deadline(self) -> float:
        """Return the earliest deadline that waits."""

    def backlog(self) -> float:
        """Return the predicted seconds of device time that wait."""

    def next_run(self, *, begins_at: float) -> Run | None:
        """Form a batch that is predicted to begin at `begins_at`; None when nobody could make it."""


class _LoopLoad:
    """How busy the event loop's thread was of late."""

    def __init__(self, clock: Callable[[], float], cpu_clock: Callable[[], float] | None) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._since = -math.inf
        self._cpu_then = 0.0
        self._share = 0.0

    @property
    def is_saturated(self) -> bool:
        """Whether it had hardly a pause; ask from its thread."""
        if self._cpu_clock is None:
            return False
        now = self._clock()
        if now - self._since >= LOAD_SECONDS:
            cpu = self._cpu_clock()
            # After a long silence this says little about now, but it errs towards idle.
            self._share = (cpu - self._cpu_then) / (now - self._since)
            self._since, self._cpu_then = now, cpu
        return self._share >= SATURATED_SHARE


class DeviceScheduler:
    """Decides which model's batch runs next on one device. Use as `async with`.

    With a scheduler for each model, models on one device slow one another down and starve whoever is
    unlucky (the reason for TensorFlow Serving's SharedBatchScheduler). Here the queue whose earliest promise
    is due first goes next. While a batch runs, the next one is formed ahead if it is full; one that could
    still grow is formed when the device comes free, so that late arrivals may join it. An idle device gives
    the first of those who come together a moment to find company, while that pays and costs no deadline; and
    where the event loop is the limit, it waits until the loop has brought those who were on their way.

    `clock` returns seconds and must run like the event loop's own (`time.monotonic`, unless the loop's time
    is virtual); `cpu_clock` the CPU time of its thread (`time.thread_time`; None: it counts as idle). The
    engine must begin what it is given in the order given, `instances` at a time.
    """

    def __init__(
        self,
        *,
        instances: int = 1,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] | None = None,
    ) -> None:
        self._instances = instances
        self._clock = clock
        self._load = _LoopLoad(clock, cpu_clock)
        self._queues: list[DeviceQueue] = []
        self._changed = asyncio.Event()
        # In the order in which the engine was given them.
        self._in_flight: list[_InFlight] = []
        # Whether it pays to give an idle device's first request a moment to find company.
        self._company = 0.0
        """Share of the last such waits that brought any."""
        self._starts_until_probe = FIRST_PROBE
        self._probe_interval = FIRST_PROBE
        self._runs: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._schedule(), name="device-scheduler")
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

        The time left of the runs in flight and the backlog of every other queue.
        """
        ahead = self._residual()
        # A loop, not sum(), and nothing is asked of an empty queue: every request comes through here, and
        # there may be many models.
        for other in self._queues:
            if other is not queue and other.queued_samples:
                ahead += other.backlog()
        return ahead

    def _residual(self) -> float:
        """Return the predicted seconds until the runs in flight have ended."""
        if not self._in_flight:
            return 0.0
        now, left = self._clock(), 0.0
        for run in self._in_flight:
            left += run.seconds if run.began is None else max(run.began + run.seconds - now, 0.0)
        return left / self._instances

    async def _schedule(self) -> None:
        while True:
            queue = self._choose()
            if queue is None:
                await self._wait_for_change()
                continue
            if self._gathers(queue):
                await self._gather(queue)
            elif self._expects_company(queue):
                await self._wait_for_company(queue)
            if self._start_next(queue):
                # Let it hand its batch to the engine before the next is looked for.
                await asyncio.sleep(0)

    def _gathers(self, queue: DeviceQueue) -> bool:
        """Return whether those who are on their way had better ride along, as the loop is the limit."""
        return not self._in_flight and self._load.is_saturated and self._has_time_for_company(queue)

    async def _gather(self, queue: DeviceQueue) -> None:
        """Return when the batch is full, the loop has nothing else to do, or time is up."""
        now = self._clock()
        until, idle_turns = now + SATURATED_SECONDS, 0
        while idle_turns < IDLE_TURNS and now < until:
            queued, began = queue.queued_samples, now
            await asyncio.sleep(0)
            now = self._clock()
            if queue.queued_samples > queued:
                idle_turns = 0
                if not self._has_time_for_company(queue):
                    return
            else:
                idle_turns = idle_turns + 1 if now - began < IDLE_TURN_SECONDS else 0

    def _expects_company(self, queue: DeviceQueue) -> bool:
        """Return whether the idle device should give `queue` a moment to grow."""
        if self._in_flight or not self._has_time_for_company(queue):
            return False
        if self._company >= 0.5:
            return True
        self._starts_until_probe -= 1
        return self._starts_until_probe <= 0

    def _has_time_for_company(self, queue: DeviceQueue) -> bool:
        """Return whether the batch can grow, and nobody's deadline is in the way of a moment more."""
        if queue.has_full_batch():
            return False
        return queue.earliest_deadline() - self._clock() - 2 * queue.backlog() >= COMPANY_SECONDS

    async def _wait_for_company(self, queue: DeviceQueue) -> None:
        """Return after a moment, and take note of whether it brought anybody."""
        before = queue.queued_samples
        await asyncio.sleep(COMPANY_SECONDS)
        came = queue.queued_samples > before
        self._company += COMPANY_WEIGHT * (came - self._company)
        self._probe_interval = FIRST_PROBE if came else min(2 * self._probe_interval, LAST_PROBE)
        self._starts_until_probe = self._probe_interval

    def _start_next(self, queue: DeviceQueue) -> bool:
        """Start the queue's next run, and return whether it had one."""
        run = queue.next_run(begins_at=self._clock() + self._residual())
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
        """Start the next run at once where requests sat out the last one: they have waited long enough.

        Unless the loop is the limit: then those who are on their way here had better ride along.
        """
        queue = self._choose()
        if queue is not None and not self._gathers(queue):
            self._start_next(queue)

    async def _wait_for_change(self) -> None:
        until = min((queue.ready_at() for queue in self._queues), default=math.inf)
        self._changed.clear()
        # While all instances are busy, the end of a run wakes this up; a queue that is due must not.
        is_busy = len(self._in_flight) >= self._instances
        wait = math.inf if is_busy else until - self._clock()
        if wait == math.inf:
            await self._changed.wait()
            return
        try:
            async with asyncio.timeout(wait):
                await self._changed.wait()
        except TimeoutError:
            pass

"""DeviceScheduler: one batch at a time on a device that several models share, earliest deadline first."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol, Self

import structlog

# What is due within this many seconds is due: timers are no finer, and waiting out a rounding error would
# wake up just as early again.
TIMER_RESOLUTION: Final = 0.0005

log = structlog.get_logger(__name__)


class DeviceQueue(Protocol):
    """One model's queue, as the scheduler sees it."""

    def ready_at(self) -> float:
        """Return when the next batch may start, in the clock's time; infinity when nothing waits."""

    def earliest_deadline(self) -> float:
        """Return the earliest deadline that waits."""

    def backlog(self) -> float:
        """Return the predicted seconds of device time that wait."""

    async def run_next(self) -> None:
        """Form the next batch and run it to its end."""


class DeviceScheduler:
    """Runs the batches of all models of one device, one at a time. Use as `async with`.

    With a scheduler for each model, models on one device slow one another down and starve whoever is
    unlucky (the reason for TensorFlow Serving's SharedBatchScheduler). Here, whenever the device comes
    free, the queue whose earliest promise is due first goes next. `clock` returns seconds and must run
    like the event loop's own (`time.monotonic`, unless the loop's time is virtual).
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queues: list[DeviceQueue] = []
        self._changed = asyncio.Event()
        self._busy_until: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="device-scheduler")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def register(self, queue: DeviceQueue) -> None:
        """Add a model's queue."""
        self._queues.append(queue)

    def unregister(self, queue: DeviceQueue) -> None:
        """Forget a model's queue; it should be empty."""
        self._queues.remove(queue)

    def notify(self) -> None:
        """Say that a queue has become ready, or may be ready earlier than it was."""
        self._changed.set()

    def expect(self, *, busy_until: float) -> None:
        """Say when the batch that is now being run is predicted to end."""
        self._busy_until = busy_until

    def seconds_ahead(self, queue: DeviceQueue) -> float:
        """Return the predicted seconds before the device could begin with `queue`, were it the last served.

        The time left of the running batch and the backlog of every other queue.
        """
        residual = 0.0 if self._busy_until is None else max(self._busy_until - self._clock(), 0.0)
        return residual + sum(other.backlog() for other in self._queues if other is not queue)

    async def _run(self) -> None:
        while True:
            now = self._clock()
            ready = [queue for queue in self._queues if queue.ready_at() <= now + TIMER_RESOLUTION]
            if not ready:
                await self._wait_for_change()
                continue
            chosen = min(ready, key=lambda queue: queue.earliest_deadline())
            try:
                await chosen.run_next()
            except Exception:
                log.exception("batch_loop_failed")
            self._busy_until = None

    async def _wait_for_change(self) -> None:
        until = min((queue.ready_at() for queue in self._queues), default=float("inf"))
        self._changed.clear()
        if until == float("inf"):
            await self._changed.wait()
            return
        try:
            async with asyncio.timeout(until - self._clock()):
                await self._changed.wait()
        except TimeoutError:
            pass

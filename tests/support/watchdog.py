"""A watchdog of event loops: no single callback may hold one for long.

What counts is the CPU time of the loop's own thread, not the clock's: on a busy machine every callback takes
long by the clock, and none of them is to blame. What the collector of reference cycles takes is not counted:
how much there is to search is the test process's doing, and a server has most of it frozen.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

STALL_SECONDS = 0.1
"""Five times what the server allows itself: what the tests' machine and their own code add is below that."""

MARKER = "blocks_loop"
"""Marks a test whose own code must hold the loop; takes the reason."""


@dataclass(frozen=True, slots=True)
class Stall:
    """One callback that took too long."""

    seconds: float
    """CPU time of the loop's thread."""
    callback: str

    def __str__(self) -> str:
        return f"{self.seconds * 1000:.0f} ms in {self.callback}"


@dataclass(slots=True)
class _Reading:
    """A thread's CPU time, and when it was read."""

    cpu: float
    wall: float


class LoopWatchdog:
    """Sees every callback of every asyncio loop of this process, in whatever thread it runs."""

    def __init__(self, limit_seconds: float = STALL_SECONDS) -> None:
        self._limit = limit_seconds
        # Reading a thread's CPU time is a system call, which costs more than most callbacks do; the clock is
        # nearly free. So it is read every tenth of the limit, and that is how well a stall is known.
        self._between_readings = limit_seconds / 10
        self._stalls: list[Stall] = []
        self._readings: dict[int, _Reading] = {}
        self._collected: dict[int, float] = {}
        self._collecting_since = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hold the watch. Loops that are not asyncio's own, such as uvloop's, are not seen."""
        run_before = asyncio.events.Handle._run
        clock, thread_id = time.perf_counter, threading.get_ident

        def run(handle: asyncio.Handle) -> None:
            began, thread = clock(), thread_id()
            reading = self._readings.get(thread)
            if reading is None or began - reading.wall > self._between_readings:
                reading = self._readings[thread] = _Reading(self._thread_seconds(), began)
            try:
                run_before(handle)
            finally:
                # No callback takes more CPU time than time.
                if clock() - began >= self._limit:
                    # Of what came since the reading, the part before the callback is at most so long.
                    seconds = self._thread_seconds() - reading.cpu - (began - reading.wall)
                    if seconds >= self._limit:
                        self._stalls.append(Stall(seconds, name_of(handle)))

        gc.callbacks.append(self._collector)
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
        try:
            yield
        finally:
            asyncio.events.Handle._run = run_before  # type: ignore[method-assign]
            gc.callbacks.remove(self._collector)

    def take(self) -> list[Stall]:
        """Return the stalls since the last call, longest first."""
        stalls, self._stalls = self._stalls, []
        return sorted(stalls, key=lambda stall: -stall.seconds)

    def _thread_seconds(self) -> float:
        return time.thread_time() - self._collected.get(threading.get_ident(), 0.0)

    def _collector(self, phase: str, _info: dict[str, int]) -> None:
        # One collection at a time, begun and ended in the same thread.
        if phase == "start":
            self._collecting_since = time.thread_time()
            return
        thread = threading.get_ident()
        spent = time.thread_time() - self._collecting_since
        self._collected[thread] = self._collected.get(thread, 0.0) + spent


def name_of(handle: Any) -> str:
    """Return what a handle calls: of a task's step the task, with its coroutine and where that is now."""
    task = getattr(handle._callback, "__self__", None)
    return repr(task) if isinstance(task, asyncio.Task) else repr(handle)

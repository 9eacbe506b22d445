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


class LoopWatchdog:
    """Sees every callback of every asyncio loop of this process, in whatever thread it runs."""

    def __init__(self, limit_seconds: float = STALL_SECONDS) -> None:
        self._limit = limit_seconds
        self._stalls: list[Stall] = []
        self._collected: dict[int, float] = {}
        self._collecting_since = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hold the watch. Loops that are not asyncio's own, such as uvloop's, are not seen."""
        run_before = asyncio.events.Handle._run

        def run(handle: asyncio.Handle) -> None:
            began = self._thread_seconds()
            try:
                run_before(handle)
            finally:
                seconds = self._thread_seconds() - began
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

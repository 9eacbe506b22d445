"""SideThread: what would hold the event loop too long is done beside it, by turns with others."""

import asyncio
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from vistazo_server.errors import DeadlineExceededError

Result = TypeVar("Result")

Steps = Generator[None, None, Result]
"""Work that pauses several times a millisecond: there it can be left, or others be let in."""

INLINE_SECONDS: Final = 0.002
"""What is predicted to take less is done on the event loop: a tenth of what may hold the loop, and many times
what a change of thread costs (0.1 to 0.2 ms)."""

SLICE_SECONDS: Final = 0.01
"""How long one piece of work goes on before the next has its turn; a change of thread is 2 % of it."""

STRETCH_SECONDS: Final = 0.00025
"""How long the thread goes on before it rests, and for as long as it went on: half of Python's time is the
event loop's. Without rests the loop waits for the interpreter's lock each time it comes back from the
network: one caller of a small network, answered in 0.9 ms, had to wait 4 ms beside a thread that decodes, 11
beside two and 30 to 70 beside six; beside one that rests, 1.0 to 1.4."""


def at_once(steps: Steps[Result]) -> Result:
    """Return what `steps` returns, without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


class SideThread:
    """One thread for decoding, ranking and encoding what is large. Close it at the end.

    Python runs one thread at a time, so several would do no more together.
    """

    def __init__(self) -> None:
        # Slices wait here in order, so all that is under way advances by turns.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="side")
        # What is under way, with its predicted seconds that are left, rests not counted.
        self._left: dict[object, float] = {}

    def ready_in(self, seconds: float) -> float:
        """Return when work of so many predicted seconds would be done, in seconds from now."""
        return 2 * (seconds + sum(min(left, seconds) for left in self._left.values()))

    async def run(self, steps: Steps[Result], *, seconds: float, deadline: float | None) -> Result:
        """Return what `steps` returns, or raise what it raises. It is predicted to take `seconds`.

        What is short is done at once, on the caller's own thread. Of the rest, a caller that goes away leaves
        at once, and its work with the slice under way. `deadline` is in time.monotonic's seconds; raises
        DeadlineExceededError when it passes.
        """
        if seconds < INLINE_SECONDS:
            return at_once(steps)
        left = None if deadline is None else deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await self._by_turns(steps, seconds)
        except TimeoutError:
            raise DeadlineExceededError(
                "the deadline passed while the request or its answer was being converted"
            ) from None

    def close(self) -> None:
        """End the thread; work that is under way is left."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _by_turns(self, steps: Steps[Result], seconds: float) -> Result:
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._left[steps] = seconds
                ended = await loop.run_in_executor(self._thread, _slice, steps)
                if ended is not None:
                    return ended[0]
                seconds = max(seconds - SLICE_SECONDS / 2, 0.0)
        finally:
            self._left.pop(steps, None)


def _slice(steps: Steps[Result]) -> tuple[Result] | None:
    """Go on for a slice of time; return what `steps` returned once it has ended, alone in a tuple."""
    until = time.perf_counter() + SLICE_SECONDS
    rested = time.thread_time()
    while time.perf_counter() < until:
        try:
            next(steps)
        except StopIteration as end:
            return (end.value,)
        # Its CPU time: what it waited for a core, or for the interpreter's lock, was no work.
        worked = time.thread_time() - rested
        if worked >= STRETCH_SECONDS:
            time.sleep(min(worked, SLICE_SECONDS))
            rested = time.thread_time()
    return None

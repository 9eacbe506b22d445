"""How late the event loop comes to what is due: what one callback that takes too long costs every caller."""

import asyncio
from collections.abc import Callable
from typing import Final

INTERVAL_SECONDS: Final = 0.05
"""Between two looks: a stall of 100 ms is always seen, and twenty wake-ups a second cost an idle server a
thousandth of a CPU."""


async def watch_loop(observe: Callable[[float], None]) -> None:
    """Tell `observe` how many seconds late a timer of this loop fires, again and again until cancelled.

    The next timer begins when the last one fired: a stall is told once, however long it was.
    """
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        # A timer may fire within its clock's resolution before it is due.
        observe(max(loop.time() - due, 0.0))

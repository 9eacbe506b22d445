"""How late the event loop is: what is observed of an idle loop and of one that is held."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from vistazo_server.telemetry.loop_watch import INTERVAL_SECONDS, watch_loop


@asynccontextmanager
async def watched():
    """Hold a watch of the running loop; yield the queue of its observations."""
    observed: asyncio.Queue[float] = asyncio.Queue()
    watching = asyncio.create_task(watch_loop(observed.put_nowait))
    yield observed
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.looptime
async def test_an_idle_loop_is_looked_at_twenty_times_a_second_and_never_late():
    async with watched() as observed:
        await asyncio.sleep(10)

    delays = [observed.get_nowait() for _ in range(observed.qsize())]
    assert len(delays) == pytest.approx(10 / INTERVAL_SECONDS, abs=1)
    assert delays == pytest.approx([0.0] * len(delays), abs=1e-6)


async def test_a_held_loop_is_told_once_with_all_the_time_that_it_was_late():
    async with watched() as observed:
        await observed.get()  # now the next timer runs
        time.sleep(1.0)  # noqa: ASYNC251
        held = await observed.get()
        later = await observed.get()

    assert held >= 1.0 - INTERVAL_SECONDS
    assert held > later

"""SideThread: long work leaves the event loop alone, advances by turns, and is left when its caller goes."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from vistazo_server.errors import DeadlineExceededError
from vistazo_server.inference.side_thread import INLINE_SECONDS, SLICE_SECONDS, SideThread, at_once

LONG = 1.0
# Of `work`, no slice has more.
STEPS = int(SLICE_SECONDS / 0.001)


@pytest.fixture
def side():
    thread = SideThread()
    yield thread
    thread.close()


def work(steps, *, log=None, name="", result=None):
    """Take so many steps of a millisecond or more, and note the name at the start of each slice."""
    for _ in range(steps):
        if log is not None and (not log or log[-1] != name):
            log.append(name)
        time.sleep(0.001)
        yield
    return result


def where():
    """Return which thread this is, as steps."""
    yield
    return threading.current_thread()


def failing():
    yield
    raise ValueError("no number")


def test_steps_without_a_pause_return_what_they_return():
    assert at_once(work(2, result="done")) == "done"


async def test_short_work_stays_on_the_loop_and_long_work_does_not(side):
    here = threading.current_thread()

    assert await side.run(where(), seconds=INLINE_SECONDS / 2, deadline=None) is here
    assert await side.run(where(), seconds=LONG, deadline=None) is not here


@pytest.mark.parametrize("seconds", [0.0, LONG])
async def test_what_the_work_raises_reaches_its_caller(side, seconds):
    with pytest.raises(ValueError, match="no number"):
        await side.run(failing(), seconds=seconds, deadline=None)

    assert await side.run(where(), seconds=seconds, deadline=None)


async def test_all_that_is_under_way_advances_by_turns(side):
    turns = []
    long = asyncio.create_task(
        side.run(work(20 * STEPS, log=turns, name="long"), seconds=LONG, deadline=None)
    )
    while not turns:
        await asyncio.sleep(0)
    short = await side.run(
        work(2 * STEPS, log=turns, name="short", result="short"), seconds=LONG, deadline=None
    )

    assert short == "short"
    assert not long.done()
    assert turns[:4] == ["long", "short", "long", "short"]
    await long


async def test_a_caller_that_goes_away_leaves_at_once_and_its_work_with_it(side):
    begun, goes_on = threading.Event(), threading.Event()
    steps_done = []

    def stuck():
        begun.set()
        goes_on.wait(10)
        yield
        while True:
            steps_done.append(1)
            time.sleep(0.001)
            yield

    caller = asyncio.create_task(side.run(stuck(), seconds=LONG, deadline=None))
    await asyncio.to_thread(begun.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller  # although the step under way has not ended
    goes_on.set()

    # The thread is free again for others once the slice under way has ended.
    assert await side.run(where(), seconds=LONG, deadline=None)
    done = len(steps_done)
    assert await side.run(work(3 * STEPS, result="more"), seconds=LONG, deadline=None) == "more"
    assert len(steps_done) == done


async def test_a_caller_whose_deadline_passes_is_told_at_once(side):
    begun, goes_on = threading.Event(), threading.Event()

    def stuck():
        begun.set()
        goes_on.wait(10)
        yield

    caller = asyncio.create_task(side.run(stuck(), seconds=LONG, deadline=time.monotonic() + 0.05))
    with pytest.raises(DeadlineExceededError, match="the deadline passed"):
        await caller

    assert not goes_on.is_set()
    goes_on.set()
    assert await side.run(where(), seconds=LONG, deadline=time.monotonic() + 10)


async def test_a_deadline_that_has_passed_costs_the_thread_nothing_more(side):
    with pytest.raises(DeadlineExceededError):
        await side.run(work(10_000), seconds=LONG, deadline=time.monotonic() - 1)

    assert side.ready_in(1.0) == 2.0


async def test_when_work_would_be_done_counts_what_others_take_of_the_turns(side):
    assert side.ready_in(0.5) == 1.0  # it rests for half of the time
    goes_on = threading.Event()

    def stuck():
        goes_on.wait(10)
        yield

    others = [
        asyncio.create_task(side.run(stuck(), seconds=seconds, deadline=None)) for seconds in (0.2, 30.0)
    ]
    await asyncio.sleep(0)

    # The long one takes no more turns than what is asked about; the short one only its own.
    assert side.ready_in(0.5) == pytest.approx(2 * (0.5 + 0.2 + 0.5))
    assert side.ready_in(0.1) == pytest.approx(2 * 0.3)
    goes_on.set()
    await asyncio.gather(*others)
    assert side.ready_in(0.5) == 1.0


async def test_the_thread_rests_for_as_long_as_it_worked(side):
    """Its CPU time, so that a busy machine does not count as work."""

    def computing():
        began = time.thread_time()
        while time.thread_time() < began + 20 * SLICE_SECONDS:
            sum(range(1000))
            yield

    began = time.monotonic()
    await side.run(computing(), seconds=LONG, deadline=None)

    assert time.monotonic() - began >= 1.8 * 20 * SLICE_SECONDS


async def test_work_that_was_left_is_not_kept(side):
    class Request:
        pass

    request = Request()
    kept = weakref.ref(request)

    def decode(request):
        while request:
            time.sleep(0.001)
            yield

    caller = asyncio.create_task(side.run(decode(request), seconds=LONG, deadline=None))
    del request
    await asyncio.sleep(2 * SLICE_SECONDS)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    del caller
    await side.run(where(), seconds=LONG, deadline=None)
    gc.collect()

    assert kept() is None


async def test_the_end_of_the_server_waits_for_the_slice_and_no_longer():
    side = SideThread()
    caller = asyncio.create_task(side.run(work(60_000), seconds=LONG, deadline=None))
    await asyncio.sleep(SLICE_SECONDS)
    caller.cancel()
    began = time.monotonic()
    side.close()

    assert time.monotonic() - began < 10
    await asyncio.gather(caller, return_exceptions=True)

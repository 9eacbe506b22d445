"""The watchdog of the tests' event loops, which must be able to bite."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from support.watchdog import STALL_SECONDS, LoopWatchdog

# It waits for real stalls, and runs pytest in processes of its own.
pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]

# Of the watchdogs of these tests: above what any innocent callback takes here, below the session's own limit.
LIMIT = 0.03
HELD = 2 * LIMIT


def burn(seconds: float) -> None:
    """Use the CPU for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def stalls_of(work) -> list[str]:
    """Return what a watchdog says of a loop that runs the coroutine function `work`."""
    watchdog = LoopWatchdog(LIMIT)
    with watchdog.watching():
        asyncio.run(work())
    return [str(stall) for stall in watchdog.take()]


def test_a_task_that_holds_the_loop_is_named():
    async def greedy() -> None:
        await asyncio.sleep(0)
        burn(HELD)

    (stall,) = stalls_of(greedy)

    assert "greedy" in stall
    assert float(stall.split()[0]) >= (HELD - LIMIT / 10) * 1000  # which is as well as it is known


def test_a_plain_callback_that_holds_the_loop_is_named():
    async def schedule() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(burn, HELD)
        loop.call_later(0.001, burn, HELD)
        await asyncio.sleep(0.05)

    stalls = stalls_of(schedule)

    assert len(stalls) == 2
    assert all("burn" in stall for stall in stalls)


def test_a_loop_in_another_thread_is_seen():
    async def greedy() -> None:
        burn(HELD)

    watchdog = LoopWatchdog(LIMIT)
    with watchdog.watching():
        thread = threading.Thread(target=asyncio.run, args=(greedy(),))
        thread.start()
        thread.join()

    assert "greedy" in str(watchdog.take()[0])


def test_many_short_callbacks_and_work_in_threads_are_no_stall():
    async def polite() -> None:
        work = asyncio.create_task(asyncio.to_thread(burn, HELD))
        for _ in range(20):
            burn(LIMIT / 10)
            await asyncio.sleep(0)
        await work

    assert stalls_of(polite) == []


def test_a_thread_that_waits_for_its_turn_on_the_cpu_is_no_stall():
    """Time by the clock passes, the thread's own does not: so it is beside busy neighbours."""

    async def suspended() -> None:
        time.sleep(HELD)  # noqa: ASYNC251

    assert stalls_of(suspended) == []


def test_the_collector_of_cycles_is_not_the_callbacks_doing():
    searched = [[] for _ in range(1_000_000)]
    spent = 0.0

    async def collect() -> None:
        nonlocal spent
        began = time.thread_time()
        for _ in range(5):
            gc.collect()
        spent = time.thread_time() - began

    assert stalls_of(collect) == []
    assert searched
    assert spent > LIMIT


def test_what_was_taken_is_told_once():
    async def greedy() -> None:
        burn(HELD)

    watchdog = LoopWatchdog(LIMIT)
    with watchdog.watching():
        asyncio.run(greedy())

    assert len(watchdog.take()) == 1
    assert watchdog.take() == []


STALLING_TESTS = f"""
import asyncio
import time
import pytest

def burn():
    end = time.thread_time() + {STALL_SECONDS} * 1.2
    while time.thread_time() < end:
        pass

async def test_polite():
    await asyncio.sleep(0)

async def test_greedy():
    burn()

@pytest.fixture
async def closes_greedily():
    yield
    burn()

async def test_greedy_fixture(closes_greedily):
    pass

@pytest.mark.looptime
async def test_greedy_in_virtual_time():
    await asyncio.sleep(1000)
    burn()

@pytest.mark.blocks_loop("builds something large")
async def test_excused():
    burn()

@pytest.mark.blocks_loop
async def test_excused_without_a_reason():
    burn()
"""


def test_a_test_whose_loop_stalls_fails_unless_it_says_why(tmp_path):
    """The session's own fixtures, on tests that hold their loops."""
    (tmp_path / "test_stalling.py").write_text(STALLING_TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-q"]
    configuration = ["-c", TESTS.parent / "pyproject.toml", "--rootdir", tmp_path]
    result = subprocess.run(
        [*command, *configuration, tmp_path],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    errors = {
        line.split("::")[1].split()[0] for line in result.stdout.splitlines() if line.startswith("ERROR")
    }
    assert errors == {
        "test_greedy",
        "test_greedy_fixture",
        "test_greedy_in_virtual_time",
        "test_excused_without_a_reason",
    }, result.stdout
    assert "6 passed, 4 errors" in result.stdout
    assert "coro=<test_greedy()" in result.stdout

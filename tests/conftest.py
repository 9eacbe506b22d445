"""For all tests."""

import asyncio
import logging
import signal
from collections.abc import Iterator

import pytest
import structlog


def _drop(logger, method, event):
    raise structlog.DropEvent


@pytest.fixture(autouse=True, scope="session")
def _quiet_logs():
    """Drop the server's log: drawing the tracebacks of provoked failures takes longer than the tests."""
    structlog.configure(
        processors=[_drop], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )


@pytest.fixture(autouse=True, scope="session")
def _a_loop_that_is_closed() -> Iterator[None]:
    """Give looptime's plugin, which asks for the event loop in tests without one, a loop that ends."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive():
    """Take SIGINT again where a shell started the tests in the background, and so with SIGINT ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

"""For all tests."""

import asyncio
import logging
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

"""For all tests."""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import structlog

from support.watchdog import MARKER, STALL_SECONDS, LoopWatchdog

# `dev`, the default, tries fewer examples of each property, for whoever waits; CI tries all.
hypothesis.settings.register_profile("dev", max_examples=40, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=200, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}(reason): the test's own code must hold the event loop")


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


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Any:
    """support.exports.Exports: models that are exported once a session. Needs the extra `export`."""
    from support.exports import Exports

    root = tmp_path_factory.getbasetemp()
    # Each of xdist's processes has its own folder in that of the session.
    return Exports((root if worker_id == "master" else root.parent) / "exports")


@pytest.fixture(autouse=True, scope="session")
def _loop_watchdog() -> Iterator[LoopWatchdog]:
    watchdog = LoopWatchdog()
    with watchdog.watching():
        yield watchdog


@pytest.fixture(autouse=True)
def _no_stalled_loop(request: pytest.FixtureRequest, _loop_watchdog: LoopWatchdog) -> Iterator[None]:
    """Fail a test whose event loop, the server's or a client's, is held by one callback for too long."""
    _loop_watchdog.take()
    yield
    stalls = _loop_watchdog.take()
    marker = request.node.get_closest_marker(MARKER)
    if marker is not None:
        assert any(marker.args), f"@pytest.mark.{MARKER} wants the reason"
    elif stalls:
        told = "\n".join(str(stall) for stall in stalls)
        limit = f"{STALL_SECONDS * 1000:.0f} ms"
        pytest.fail(f"the event loop was held for more than {limit}:\n{told}", pytrace=False)

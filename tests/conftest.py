"""For all tests."""

import logging

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

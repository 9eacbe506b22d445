"""How a request ended, as the metrics count it."""

import asyncio
import time
from typing import Final

import grpc

from vistazo_server.errors import ServingError

DEADLINE_TOLERANCE: Final = 0.02
"""Seconds before the deadline from which a cancelled request counts as one whose deadline passed: the caller
starts its clock when it sends, the server when the request arrives."""

_OF_STATUS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "rejected",
    grpc.StatusCode.UNAVAILABLE: "rejected",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
}


def outcome_of(error: BaseException, deadline: float) -> str:
    """Return the outcome of a request that raised `error`; its deadline is in time.monotonic's seconds."""
    if isinstance(error, asyncio.CancelledError):
        # grpc cancels the handler when the deadline passes; its clock and ours differ by a few moments.
        return "deadline" if time.monotonic() > deadline - DEADLINE_TOLERANCE else "cancelled"
    if isinstance(error, ServingError):
        return _OF_STATUS.get(error.code, "error")
    return "error"

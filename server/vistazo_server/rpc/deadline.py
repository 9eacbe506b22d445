"""A call's deadline: grpc gives the seconds left, the server counts in time.monotonic's."""

import time
from typing import Any, Final, cast

import grpc.aio

CLOCK_STEP_SECONDS: Final = 1.0
"""Two answers that differ by more were not taken in the same second of the same clock."""

Context = grpc.aio.ServicerContext[Any, Any]


def seconds_left(context: Context) -> float | None:
    """Return the seconds until the call's deadline, 0 once it has passed; None when the caller sent none.

    grpc takes the deadline's wall-clock time and subtracts the wall clock's: a clock that is set between the
    two is off by as much. So it is asked again until two answers agree.
    """
    left = _seconds_left(context)
    while left is not None:
        again = cast("float", _seconds_left(context))
        if abs(again - left) < CLOCK_STEP_SECONDS:
            return again
        left = again
    return None


def _seconds_left(context: Context) -> float | None:
    return cast("float | None", context.time_remaining())  # grpc's stubs forget the None


def call_deadline(context: Context) -> float | None:
    """Return the caller's deadline in time.monotonic's seconds; None when it sent none."""
    left = seconds_left(context)
    return None if left is None else time.monotonic() + left


def sooner(deadline: float | None, timeout: float) -> float:
    """Return the earlier of a call's deadline and the end of `timeout` seconds, a request's own, from now."""
    own = time.monotonic() + timeout
    return own if deadline is None else min(own, deadline)

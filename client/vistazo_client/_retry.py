"""When a failed call is tried again, and after how long.

All calls of this client are idempotent: asking twice what an image shows, what models there are or how
the server is changes nothing. grpc has retries of its own (gRFC A6); they are not used, because they
wait for a pushback that ends after the deadline, give up requests over 256 KiB, retry what is too large
to be received, and send everyone who was refused back at the same moment.

Nothing here is public.
"""

import random
import time
from collections.abc import Callable
from typing import Final

import grpc

from vistazo_client.errors import PUSHBACK_TRAILER, DeadlineExceededError, VistazoError, trailer

DEFAULT_RETRIES: Final = 6
"""Their waits add up to 2.5 s: they outlast the second in which a replica that is replaced still turns
callers away, though each should reach that replica again, and not a server that is gone. gRFC A6 allows 4,
which end after 0.75 s: two of some thousand requests failed in a rolling restart of three replicas."""

# The server did not do the work, or died doing it: here or elsewhere it may be done.
FIRST_BACKOFF_SECONDS: Final = 0.05
LAST_BACKOFF_SECONDS: Final = 1.0
BACKOFF_MULTIPLIER: Final = 2.0

# Those who were refused together come back apart. A pushback is a promise: never before it.
BACKOFF_JITTER: Final = (0.8, 1.2)
PUSHBACK_JITTER: Final = (1.0, 1.2)

# Statuses of a server that is not there, not yet or no longer. A server that stops cancels the requests
# that reached it and were not begun; where it is this client that cancelled, no one waits for a retry.
_NOT_DONE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})

# grpc takes no timeout of 0; the least that it tells apart.
SHORTEST_TIMEOUT_SECONDS: Final = 0.001


class Attempts:
    """The attempts of one call, and the time that they share."""

    def __init__(
        self,
        *,
        retries: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._left = retries
        self._failures = 0
        self._retried: VistazoError | None = None
        self._clock = clock
        self._uniform = uniform
        self._deadline = clock() + timeout

    @property
    def seconds_left(self) -> float:
        """Time until the caller's deadline, above 0 even when it has passed."""
        return max(self._deadline - self._clock(), SHORTEST_TIMEOUT_SECONDS)

    def extend(self, seconds: float) -> None:
        """Leave out so many seconds: the caller took them, and nobody worked on the call."""
        self._deadline += max(seconds, 0.0)

    def delay_after(self, error: VistazoError) -> float | None:
        """Return the seconds to wait before the next attempt; None where there is to be none."""
        self._left -= 1
        if self._left < 0 or not _may_retry(error):
            return None
        delay = self._delay(error)
        self._failures += 1
        self._retried = error
        # The answer would come too late, or not at all: the reason is worth more now.
        return delay if self._clock() + delay < self._deadline else None

    def explain(self, error: VistazoError) -> VistazoError:
        """Return `error`, the last; of a timeout in the middle of retries it says what they were for."""
        if self._retried is None or not isinstance(error, DeadlineExceededError):
            return error
        explained = DeadlineExceededError(f"{error}; before that: {self._retried}", code=error.code)
        explained.__cause__ = error.__cause__
        return explained

    def _delay(self, error: VistazoError) -> float:
        if error.retry_after is not None:
            return error.retry_after * self._uniform(*PUSHBACK_JITTER)
        backoff = FIRST_BACKOFF_SECONDS * BACKOFF_MULTIPLIER**self._failures
        return min(backoff, LAST_BACKOFF_SECONDS) * self._uniform(*BACKOFF_JITTER)


def _may_retry(error: VistazoError) -> bool:
    """Return whether the same call may be answered later, or by another server."""
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Without a time it may as well be a message too large, which stays too large.
        return error.retry_after is not None
    return error.code in _NOT_DONE and not _is_forbidden(error)


def _is_forbidden(error: VistazoError) -> bool:
    """Return whether the server sent a pushback that is no time, which in gRFC A6 means "do not"."""
    cause = error.__cause__
    if error.retry_after is not None or not isinstance(cause, grpc.RpcError):
        return False
    return trailer(cause, PUSHBACK_TRAILER) is not None

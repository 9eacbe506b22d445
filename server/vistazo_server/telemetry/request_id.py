"""The id of the request under way, the caller's own or a new one, in its log lines and its trailer.

And, where tokens are in use, the name of who sent it.
"""

import itertools
import os
import re
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final

KEY: Final = "x-request-id"
"""Metadata in which a caller may send an id, and trailer in which the server tells it."""

# What identifiers are made of. Anything else in a log is an invitation to forge it.
_SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# A counter behind eight random bytes: unique without asking for randomness at each request.
_PREFIX = os.urandom(8).hex()
_numbers = itertools.count(1)

_current: ContextVar[str] = ContextVar("request_id", default="")
_caller: ContextVar[str] = ContextVar("caller", default="")


def begin(metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
    """Give the request under way its id: the caller's when it is sane, else a new one.

    It holds for the task that runs the request and those that it starts.
    """
    for key, value in metadata or ():
        if key == KEY and isinstance(value, str) and _SANE.fullmatch(value):
            _current.set(value)
            return
    _current.set(f"{_PREFIX}-{next(_numbers):x}")


def current() -> str:
    """Return the id of the request under way; empty outside of one."""
    return _current.get()


def is_made_up() -> bool:
    """Return whether the request under way has an id that its caller does not know yet."""
    return _current.get().startswith(_PREFIX)


def identify(caller: str) -> None:
    """Say who sent the request under way: the name that its token was given to."""
    _caller.set(caller)


def caller() -> str:
    """Return who sent the request under way; empty when that is not known."""
    return _caller.get()

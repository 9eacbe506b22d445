"""The process's memory: what the C library's allocator keeps of it."""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Final

# Of malloc.h. glibc would make eight heaps for each core, and what a thread frees stays in its heap: those of
# grpc's pool, whose threads come and go, then hold on to several megabytes each. Python's lock leaves little
# to allocate at the same time: LeNet with 64 callers was as fast with 1, 2 and 16 of them.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2


def limit_arenas() -> None:
    """Let all threads share two of glibc's heaps, unless MALLOC_ARENA_MAX says another number.

    Call it before they are started: a heap that exists stays.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return freed memory to the system, where the C library is glibc.

    Loading VGG16, ResNet18 and AlexNet leaves 130 MB of freed pages behind, which glibc would keep: the
    graphs are read and optimised in pieces. Takes some milliseconds; call it from a thread that may wait.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _glibc(function: str) -> Callable[..., Any] | None:
    """Return one of glibc's own functions; None where the C library is another."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    # musl has no malloc_trim, and a mallopt that is not glibc's would take other numbers.
    is_glibc = hasattr(library, "gnu_get_libc_version")
    return getattr(library, function) if is_glibc else None

"""The process's memory: what the allocator keeps of it is given back after loads and unloads."""

import ctypes
import functools
import sys
from collections.abc import Callable


def give_back() -> None:
    """Return freed memory to the system, where the C library is glibc.

    Loading VGG16, ResNet18 and AlexNet leaves 130 MB of freed pages behind, which glibc would keep: the
    graphs are read and optimised in pieces. Takes some milliseconds; call it from a thread that may wait.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    return trim

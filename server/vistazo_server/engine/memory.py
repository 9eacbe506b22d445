"""The process's memory: how much of it there may be, and what the C library's allocator keeps of it."""

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from vistazo_server.engine import cgroup

# Of malloc.h. glibc would make eight heaps for each core, and what a thread frees stays in its heap: those of
# grpc's pool, whose threads come and go, then hold on to several megabytes each. Python's lock leaves little
# to allocate at the same time: LeNet with 64 callers was as fast with 1, 2 and 16 of them.
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 2
# What is larger is mapped, and given back as soon as it is freed. glibc would raise this to 32 MiB after the
# first large image: ten photographs of 50 megapixels then left 450 MB of holes behind.
_M_MMAP_THRESHOLD: Final = -3
_MAPPED_BYTES: Final = 8 << 20
# With that set, glibc no longer adapts this either; it would be 128 KiB.
_M_TRIM_THRESHOLD: Final = -1
_TRIMMED_BYTES: Final = 16 << 20


# Where nothing says how much there is.
_UNKNOWN: Final = 4 << 30
_LIMIT_FILES: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}


def memory_limit() -> int:
    """Return the bytes that this process may take: the least of what cgroup, machine and ulimit allow."""
    return _least(cgroup.ROOT, cgroup.MEMBERSHIP)


def _least(root: Path, membership: Path) -> int:
    limits = [*_of_cgroups(root, membership), *_of_ulimit()]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((limit for limit in limits if limit > 0), default=_UNKNOWN)


def _of_cgroups(root: Path, membership: Path) -> Iterator[int]:
    for folder, version in cgroup.enclosing("memory", root, membership):
        try:
            text = (folder / _LIMIT_FILES[version]).read_text().strip()
            # Without a limit version 1 has a number larger than any memory, and version 2 the word max.
            yield int(text)
        except (OSError, ValueError):
            continue


def _of_ulimit() -> Iterator[int]:
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  there is none on Windows

    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft


def limit_arenas() -> None:
    """Let all threads share two of glibc's heaps, and large blocks have none; MALLOC_… variables win.

    Call it before they are started: a heap that exists stays.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _ARENAS)
    if not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIMMED_BYTES)


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

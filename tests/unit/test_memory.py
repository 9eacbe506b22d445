"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import pytest

from vistazo_server import memory


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_freed_memory_is_given_back():
    # Small pieces, below the size from which each is a mapping of its own; the last one pins the heap's end.
    pieces = [bytearray(100_000) for _ in range(2_000)]
    pin = bytearray(100_000)
    full = resident_mb()
    del pieces
    memory.give_back()

    assert resident_mb() < full - 150
    assert len(pin) == 100_000


def test_where_the_library_cannot_it_does_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    memory._malloc_trim.cache_clear()
    try:
        memory.give_back()
        assert memory._malloc_trim() is None
    finally:
        memory._malloc_trim.cache_clear()

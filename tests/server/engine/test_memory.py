"""Freed memory goes back to the system."""

import os
import subprocess
import sys

import numpy as np
import pytest
from onnx import helper

from support.graphs import graph, write_graph
from vistazo_bench.measuring.machine import resident_bytes
from vistazo_server.engine import memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_freed_memory_is_given_back():
    # Small pieces, below the size from which each is a mapping of its own; the last one pins the heap's end.
    pieces = [bytearray(100_000) for _ in range(2_000)]
    pin = bytearray(100_000)
    full = resident_bytes(os.getpid())
    del pieces
    memory.give_back()

    assert resident_bytes(os.getpid()) < full - 150e6
    assert len(pin) == 100_000


def test_where_the_library_cannot_it_does_nothing(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    memory._glibc.cache_clear()
    try:
        memory.give_back()
        memory.limit_arenas()
        assert memory._glibc("malloc_trim") is None
    finally:
        memory._glibc.cache_clear()


HEAPS_OF_EIGHT_THREADS = """
import ctypes, sys, threading
from vistazo_server.engine import memory
if sys.argv[1] == "limited":
    memory.limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.fclose.argtypes = [ctypes.c_void_p]
together = threading.Barrier(8)
def use():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(out))
libc.fclose(out)
"""


def heaps(tmp_path, *, limited: bool, env: dict[str, str] | None = None) -> int:
    """Return how many of glibc's heaps eight threads share in a process of their own."""
    told = tmp_path / "malloc.xml"
    arguments = ["limited" if limited else "as glibc has it", str(told)]
    inherited = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    subprocess.run(
        [sys.executable, "-c", HEAPS_OF_EIGHT_THREADS, *arguments], env=inherited | (env or {}), check=True
    )
    return told.read_text().count("<heap nr=")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_threads_share_a_few_heaps(tmp_path):
    assert heaps(tmp_path, limited=False) > 2
    assert heaps(tmp_path, limited=True) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_the_operator_may_choose_how_many_heaps(tmp_path):
    assert heaps(tmp_path, limited=True, env={"MALLOC_ARENA_MAX": "4"}) == 4


SAMPLE_MB = 16

GROWTH_OF_A_WARM_UP = """
import asyncio, os, sys
from pathlib import Path
from support.cpu_model import cpu_model
from vistazo_bench.measuring.machine import resident_bytes
from vistazo_server.engine.onnx_model import BatchLimit

async def main():
    # No batch is fast enough for that: one by one.
    limit = BatchLimit(ceiling=16, is_fixed=False, slo=1e-6)
    before = resident_bytes(os.getpid())
    with cpu_model(Path(sys.argv[1]), "wide", batch_limit=limit) as model:
        await model.load()
        assert max(model.latency.table()) > model.max_batch_size == 1
        print((resident_bytes(os.getpid()) - before) / 1e6)
        await model.close()

asyncio.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_warm_up_keeps_no_memory_for_batches_larger_than_those_that_are_served(tmp_path):
    width = SAMPLE_MB * 1_000_000 // 4
    wide = graph(
        [
            helper.make_node("Expand", ["x", "shape"], ["wide"]),
            helper.make_node("Exp", ["wide"], ["powers"]),
            helper.make_node("ReduceSum", ["powers", "axis"], ["y"]),
        ],
        {"x": ("FP32", ("batch", 1))},
        {"y": ("FP32", ("batch", 1))},
        shape=np.array([1, width]),
        axis=np.array([1]),
    )
    folder = write_graph(tmp_path, "wide", wide)
    # In a process of its own: what this one holds has been used and freed by many tests before.
    ran = subprocess.run(
        [sys.executable, "-c", GROWTH_OF_A_WARM_UP, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 4 * SAMPLE_MB

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


def written(root, **contents):
    for path, content in contents.items():
        file = root / path.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def limit_in(root):
    return memory._least(root, root / "proc")


def test_the_memory_limit_is_at_most_the_machines():
    assert 0 < memory.memory_limit() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("text", "expected"), [("104857600\n", 100 << 20), ("max\n", None), ("nonsense", None)]
)
def test_a_version_2_memory_limit_is_read(tmp_path, text, expected):
    written(tmp_path, proc="0::/pod/container\n", pod__container__memoryDOTmax=text)

    assert limit_in(tmp_path) == (expected or memory.memory_limit())


def test_the_tightest_of_the_enclosing_memory_limits_counts(tmp_path):
    written(
        tmp_path,
        proc="0::/pod/container\n",
        pod__memoryDOTmax="104857600",
        pod__container__memoryDOTmax="209715200",
    )

    assert limit_in(tmp_path) == 100 << 20


@pytest.mark.parametrize(
    ("text", "expected"), [("104857600", 100 << 20), ("9223372036854771712", None)], ids=["limit", "none"]
)
def test_a_version_1_memory_limit_is_read_too(tmp_path, text, expected):
    # Inside a container the path is the host's, and its own root has the limit.
    written(tmp_path, proc="3:cpu:/x\n4:memory:/docker/abc\n", memory__memoryDOTlimit_in_bytes=text)

    assert limit_in(tmp_path) == (expected or memory.memory_limit())


@pytest.mark.skipif(sys.platform == "win32", reason="there is no ulimit")
def test_what_ulimit_allows_is_a_limit_too():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (700 << 20, 700 << 20)); "
        "from vistazo_server.engine.memory import memory_limit; print(memory_limit() >> 20)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(told.stdout) <= 700


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
from vistazo_server.engine.batch_limit import BatchLimit

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

"""Callers of a server process: threads that ask without end, as any client of gRPC may."""

import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from support.process import PATIENCE_SECONDS, ServerProcess
from support.serving import raw
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc

# A connection of its own, and no retries of grpc's.
CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]
# Of a caller that was refused: as any client that retries.
PAUSE_SECONDS = 0.2


@contextmanager
def callers(server: ServerProcess, *, count: int, deadline: float) -> Iterator[Counter[str]]:
    """Hold callers, each with a connection of its own, and count how their requests end: code → times."""
    endings: Counter[str] = Counter()
    ended = threading.Event()
    request = pb.ClassifyRequest(images=[raw(plain(200, 10, 10))])

    def call() -> None:
        with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            stub = pb_grpc.ClassificationServiceStub(channel)
            while not ended.is_set():
                try:
                    stub.Classify(request, timeout=deadline)
                    endings["OK"] += 1
                except grpc.RpcError as error:
                    endings[error.code().name] += 1
                    ended.wait(PAUSE_SECONDS)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: endings["OK"] >= count)
        yield endings
    finally:
        ended.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once `condition()` holds; fail when it never does."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def metric(server: ServerProcess, name: str) -> float:
    """Return the sum of a metric's series, as the endpoint tells it."""
    lines = metrics_text(server).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def metrics_text(server: ServerProcess) -> str:
    """Return what the endpoint tells."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as response:
        return str(response.read().decode())

"""What the suites that run with NVIDIA's client share. They run in a process of their own, started by
tests/service/answers/test_triton_client.py: its stubs of package `inference` and ours cannot load in one.
"""

import json
import os
import queue
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Far above what any of this takes on a busy machine: reached only by what would never have come.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """Where the server under test is."""

    address: str
    metrics: str
    models: Path
    pid: int

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the server's process still: it takes connections and answers nothing until it thaws."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def server() -> Server:
    where = json.loads(os.environ["TRITON_SUITE"])
    return Server(where["address"], where["metrics"], Path(where["models"]), where["pid"])


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[Any]:
    """The synchronous client."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture
def stub(server: Server) -> Iterator[Any]:
    """The bare stub, for requests that the client would refuse to make."""
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="session")
def tensor() -> Callable[..., Any]:
    """Make an InferInput: `tensor(array)` or `tensor(array, "INPUT1")`."""
    from tritonclient.grpc import InferInput
    from tritonclient.utils import np_to_triton_dtype

    def make(array: np.ndarray, name: str = "INPUT0", datatype: str = "") -> Any:
        made = InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
        made.set_data_from_numpy(array)
        return made

    return make


@pytest.fixture
def refusal() -> Callable[..., Any]:
    """Call and return the InferenceServerException that came: `refusal(client.infer, ...)`."""
    from tritonclient.utils import InferenceServerException

    def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with pytest.raises(InferenceServerException) as caught:
            function(*arguments, **named)
        return caught.value

    return call


@dataclass
class Inbox:
    """Takes the results and errors of callbacks."""

    items: queue.Queue = field(default_factory=queue.Queue)

    def callback(self, result: Any, error: Any) -> None:
        self.items.put((result, error))

    def result(self) -> Any:
        """Return the next result; fail where it is an error."""
        result, error = self.items.get(timeout=PATIENCE_SECONDS)
        assert error is None, error
        return result

    def error(self) -> Any:
        """Return the next error; fail where it is a result."""
        result, error = self.items.get(timeout=PATIENCE_SECONDS)
        assert error is not None, result.get_response()
        return error


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def new_inbox() -> type[Inbox]:
    """For tests that need several."""
    return Inbox


@pytest.fixture(scope="session")
def metric(server: Server) -> Callable[..., float]:
    """Read a metric now: the sum of the series that have all the labels; 0 where there is none."""

    def read(name: str, **labels: str) -> float:
        with urllib.request.urlopen(server.metrics, timeout=PATIENCE_SECONDS) as page:
            lines = page.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.split("{")[0].split(" ")[0] == name and all(label in line for label in wanted)
        )

    return read


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], None]:
    """Return once the condition holds; fail when it never does."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            time.sleep(0.01)

    return wait

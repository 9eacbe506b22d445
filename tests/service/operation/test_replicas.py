"""Several servers behind one client: requests are spread, and a replica that dies is not felt."""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from support.process import PATIENCE_SECONDS, ServerProcess, server_process
from support.tiny import plain
from vistazo_client import AsyncClient, Client, VistazoError

RED = plain(200, 10, 10)


@pytest.fixture
def start(models: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Call it to start a replica, on a port of its own or on the one given."""
    with ExitStack() as stack:
        yield lambda *flags, **options: stack.enter_context(server_process(models, *flags, **options))


def answered(server: ServerProcess) -> float:
    """Return how many inference requests a replica answered."""
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as response:
        lines = response.read().decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("vistazo_inference_requests_total{") and 'outcome="ok"' in line
    )


def address(servers: list[ServerProcess], host: str) -> str:
    return ",".join(f"{host}:{server.port}" for server in servers)


def poll(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Load:
    """Callers in threads, each asking again as soon as it is answered."""

    def __init__(self, client: Client, callers: int) -> None:
        self._client = client
        self._stop = threading.Event()
        self.answers = count()
        self.done = 0
        self.labels: set[str] = set()
        self.errors: list[VistazoError] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self.labels.add(self._client.classify(RED).top.label)
            except VistazoError as error:
                self.errors.append(error)
            self.done = next(self.answers)

    def wait_for(self, more: int) -> None:
        """Return after so many more answers."""
        target = self.done + more
        poll(lambda: self.done >= target or bool(self.errors), "the load makes no progress")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)


# Addresses of digits are balanced by grpc itself, names by the client.
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_requests_are_spread_and_a_killed_replica_is_not_felt(start, host):
    servers = [start() for _ in range(3)]
    with Client(address(servers, host), timeout=30) as client:
        client.wait_until_ready(timeout=PATIENCE_SECONDS)
        load = Load(client, callers=8)
        load.wait_for(150)
        poll(lambda: all(answered(server) >= 10 for server in servers), "one replica gets nothing")
        victim = servers[1]
        victim.process.kill()
        load.wait_for(300)
        again = start(env={"VISTAZO_LISTEN": victim.address})
        poll(lambda: answered(again) >= 10, "the replica that is back gets nothing")
        load.stop()

    assert load.errors == []
    assert load.labels == {"red"}


async def test_a_killed_replica_is_not_felt_in_asyncio_either(start):
    servers = [start(), start()]
    errors, labels = [], []
    stop = asyncio.Event()
    async with AsyncClient(address(servers, "127.0.0.1"), timeout=30) as client:
        await client.wait_until_ready(timeout=PATIENCE_SECONDS)

        async def ask() -> None:
            while not stop.is_set():
                try:
                    labels.append((await client.classify(RED)).top.label)
                except VistazoError as error:
                    errors.append(error)

        callers = [asyncio.create_task(ask()) for _ in range(8)]
        for target in (100, 300):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(labels) < target and not errors:
                    await asyncio.sleep(0.01)
            servers[0].process.kill()
        stop.set()
        await asyncio.gather(*callers)

    assert errors == []
    assert set(labels) == {"red"}


def test_a_stream_outlives_the_replica_that_it_ran_on(start):
    servers = [start(), start()]
    with Client(address(servers, "127.0.0.1"), timeout=30) as client:
        client.wait_until_ready(timeout=PATIENCE_SECONDS)
        labels = {}
        for number, result in client.classify_stream((number, RED) for number in range(600)):
            labels[number] = result.top.label
            if len(labels) == 200:
                ran_on = max(servers, key=answered)
                ran_on.process.kill()

    assert labels == dict.fromkeys(range(600), "red")


@pytest.mark.parametrize("delay", ["0", "0.2"])
def test_a_drained_replica_loses_no_image_of_a_stream_and_is_not_held_by_it(start, delay):
    servers = [start("--drain-delay-seconds", delay), start("--drain-delay-seconds", delay)]
    with Client(address(servers, "127.0.0.1"), timeout=30) as client, ThreadPoolExecutor() as pool:
        client.wait_until_ready(timeout=PATIENCE_SECONDS)
        ended, going_on = None, threading.Event()

        def images():
            for number in count():
                yield number, RED
                # Some after its end, from the other replica.
                if going_on.is_set() and number % 100 == 0:
                    return

        labels = {}
        for number, result in client.classify_stream(images()):
            assert number not in labels
            labels[number] = result.top.label
            if len(labels) == 100:
                ran_on = max(servers, key=answered)
                began = time.monotonic()
                ran_on.terminate()
                ended = pool.submit(ran_on.wait)
            if ended is not None and ended.done() and not going_on.is_set():
                took = time.monotonic() - began
                going_on.set()

    assert ended.result() == 0
    assert took < 15  # half of the grace, which the stream would have lasted
    assert labels == dict.fromkeys(range(len(labels)), "red")


async def test_a_drained_replica_loses_no_image_of_a_stream_in_asyncio_either(start):
    servers = [start(), start()]
    async with AsyncClient(address(servers, "127.0.0.1"), timeout=30) as client:
        await client.wait_until_ready(timeout=PATIENCE_SECONDS)
        ended, labels = None, {}

        async def images():
            for number in count():
                yield number, RED
                # Some after its end, from the other replica.
                if ended is not None and ended.done() and number % 100 == 0:
                    return

        async for number, result in client.classify_stream(images()):
            assert number not in labels
            labels[number] = result.top.label
            if len(labels) == 100:
                ran_on = await asyncio.to_thread(max, servers, key=answered)
                ran_on.terminate()
                ended = asyncio.create_task(asyncio.to_thread(ran_on.wait))

    assert await ended == 0
    assert labels == dict.fromkeys(range(len(labels)), "red")


def test_a_stream_outlives_the_drain_of_its_replica(start):
    servers = [start("--grace-seconds", "1"), start("--grace-seconds", "1")]
    with Client(address(servers, "127.0.0.1"), timeout=30) as client, ThreadPoolExecutor() as pool:
        client.wait_until_ready(timeout=PATIENCE_SECONDS)
        labels, ended, goal = {}, None, None
        for number, result in client.classify_stream((number, RED) for number in count()):
            labels[number] = result.top.label
            if len(labels) == 100:
                ran_on = max(servers, key=answered)
                ran_on.terminate()
                ended = pool.submit(ran_on.wait)
            if ended is not None and ended.done():
                goal = goal or len(labels) + 100
            if goal is not None and len(labels) == goal:
                break

    assert ended.result() == 0
    assert set(labels.values()) == {"red"}


def test_connections_that_the_server_ends_for_their_age_are_not_felt(start):
    server = start("--max-connection-age-seconds", "0.5")
    with Client(server.address, timeout=30) as client:
        load = Load(client, callers=4)
        streamed = dict(client.classify_stream((number, RED) for number in range(2000)))
        load.stop()

    assert load.errors == []
    assert len(streamed) == 2000
    assert {result.top.label for result in streamed.values()} == {"red"}


def test_a_rolling_restart_is_not_felt(start):
    servers = [start("--drain-delay-seconds", "0.5") for _ in range(2)]
    with Client(address(servers, "127.0.0.1"), timeout=30) as client, ThreadPoolExecutor() as pool:
        client.wait_until_ready(timeout=PATIENCE_SECONDS)
        load = Load(client, callers=4)
        for server in list(servers):
            load.wait_for(50)
            server.terminate()
            assert pool.submit(server.wait).result(PATIENCE_SECONDS) == 0
            again = start(env={"VISTAZO_LISTEN": server.address})
            poll(lambda again=again: answered(again) >= 10, "the replica that is back gets nothing")
        load.stop()

    assert load.errors == []
    assert load.labels == {"red"}

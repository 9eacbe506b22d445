"""Servers that take requests and answer nothing, sources and consumers that take their time: both clients."""

import itertools
import math
import threading
import time

import grpc
import pytest

from vistazo_client import DeadlineExceededError, VistazoError
from vistazo_client._connection import Connection
from vistazo_client._target import Target

pytestmark = pytest.mark.usefixtures("quick_retries")

PATIENCE = 30.0


@pytest.fixture
def two(start_at):
    """A server that hangs and one that does not, and the addresses of both as names."""
    hung, healthy = start_at("127.0.0.1:0"), start_at("127.0.0.1:0")
    over = threading.Event()

    def hang(*_):
        over.wait(PATIENCE)

    hung.service.script = hung.service.stream_script = hang
    yield hung, healthy, [f"localhost:{each.address.rpartition(':')[2]}" for each in (hung, healthy)]
    over.set()


def outcomes(client, calls):
    found = []
    for _ in range(calls):
        try:
            found.append(client.classify(b"cat").top.label)
        except VistazoError as error:
            found.append(type(error).__name__)
    return found


@pytest.fixture
def long_down(monkeypatch):
    """However slow the machine is, what is down stays so for the test."""
    monkeypatch.setattr("vistazo_client._connection.DOWN_SECONDS", 4 * PATIENCE)
    monkeypatch.setattr("vistazo_client._connection.LONGEST_DOWN_SECONDS", 4 * PATIENCE)


@pytest.mark.usefixtures("long_down")
def test_a_server_that_hangs_costs_one_answer_and_is_left(two, open_client):
    hung, _, addresses = two
    with open_client(addresses, timeout=2.0) as client:
        found = outcomes(client, 20)

    assert sorted(found) == ["DeadlineExceededError"] + ["cat"] * 19
    assert len(hung.service.requests) == 1


def test_what_hangs_is_asked_less_and_less_often_until_it_answers(monkeypatch):
    now = 100.0
    monkeypatch.setattr("vistazo_client._connection.time.monotonic", lambda: now)
    channel = grpc.insecure_channel("localhost:1")
    connection = Connection([Target("a"), Target("b")], lambda _: channel)
    first = connection.link()
    pauses = []
    for _ in range(8):
        connection.hangs(first)
        pauses.append(first.down_until - now)
        assert all(connection.link() is not first for _ in range(4))
        now = first.down_until
        assert first in {connection.link(), connection.link()}
    first.answered()
    connection.hangs(first)
    channel.close()

    assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]
    assert first.down_until - now == 1


def test_a_server_that_is_slow_for_one_and_answers_others_is_not_left(two, open_client):
    slow, _, addresses = two
    hang = slow.service.script

    def only_dogs(request, context):
        if request.images[0].encoded == b"dog":
            hang()

    slow.service.script = only_dogs
    with open_client(addresses, timeout=PATIENCE) as client:
        errors = []

        def ask():
            while not errors:
                try:
                    client.classify(b"dog", timeout=0.5)
                except DeadlineExceededError as error:
                    errors.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        while asking.is_alive():
            assert client.classify(b"cat").top.label == "cat"
        asking.join()
        before = len(slow.service.requests)
        outcomes(client, 4)

    assert errors
    assert len(slow.service.requests) - before == 2


@pytest.mark.usefixtures("long_down")
def test_a_stream_moves_from_a_server_that_hangs_and_loses_nothing(two, open_client):
    hung, _, addresses = two
    with open_client(addresses, timeout=4.0) as client:
        began = time.monotonic()
        for _ in range(2):
            images = [(number, f"{number}".encode()) for number in range(100)]
            found = dict(client.classify_stream(images))
            assert {number: result.top.label for number, result in found.items()} == {
                number: f"{number}" for number in range(100)
            }

    assert hung.service.streams == 1
    assert time.monotonic() - began < PATIENCE / 2


def test_a_stream_to_one_server_alone_waits_for_it(server, open_client):
    release = threading.Event()
    server.service.stream_script = lambda *_: release.wait(PATIENCE) and None
    threading.Timer(2.5, release.set).start()
    with open_client(server.address, timeout=4.0) as client:
        ((_, result),) = client.classify_stream([(0, b"cat")])

    assert result.top.label == "cat"
    assert server.service.streams == 1


def slowly(images, seconds):
    for image in images:
        time.sleep(seconds)
        yield image


def failing(times, *, code=grpc.StatusCode.UNAVAILABLE):
    """Return a script that refuses so many requests."""
    left = itertools.count(times, -1)

    def script(_, context):
        if next(left) > 0:
            context.abort(code, "not now")

    return script


def test_a_slow_source_takes_nothing_of_a_retrys_time(server, open_client, monkeypatch):
    monkeypatch.setattr("vistazo_client._codec.IMAGES_PER_REQUEST", 2)
    server.service.script = failing(1)
    with open_client(server.address, timeout=1.0) as client:
        found = client.classify(slowly([b"a", b"b", b"c", b"d", b"e"], 0.6))

    assert [result.top.label for result in found] == ["a", "b", "c", "d", "e"]


def test_a_slow_consumer_takes_nothing_of_a_retrys_time(server, open_client, monkeypatch):
    monkeypatch.setattr("vistazo_client._codec.IMAGES_PER_REQUEST", 1)
    found = []
    with open_client(server.address, timeout=1.0) as client:
        for result in client.classify_iter([b"a", b"b", b"c", b"d"]):
            found.append(result.top.label)
            if len(found) == 1:
                server.service.script = failing(1)
            time.sleep(1.1)

    assert found == ["a", "b", "c", "d"]


def test_a_request_does_not_wait_for_a_slow_source_to_fill_it(server, open_client, monkeypatch):
    monkeypatch.setattr("vistazo_client._codec.GATHER_SECONDS", 0.1)
    taken = []

    def source():
        for number in range(12):
            taken.append(number)
            time.sleep(0.08)
            yield f"{number}".encode()

    with open_client(server.address) as client:
        results = client.classify_iter(source())
        first = next(iter(results)).top.label
        taken_before_the_first = len(taken)
        rest = [result.top.label for result in results]

    assert first == "0"
    assert taken_before_the_first < 12
    assert rest == [f"{number}" for number in range(1, 12)]
    assert all(len(request.images) < 12 for request in server.service.requests)


def test_what_comes_at_once_goes_together(server, open_client, monkeypatch):
    monkeypatch.setattr("vistazo_client._codec.GATHER_SECONDS", math.inf)
    with open_client(server.address) as client:
        client.classify([b"a"] * 40)

    assert sorted(len(request.images) for request in server.service.requests) == [8, 32]

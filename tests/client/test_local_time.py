"""`preprocess="local"`: deadlines, memory, and the end of a client while it prepares."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import pytest

from support.shades import label, pixels, sent, shade
from vistazo_client import (
    AsyncClient,
    DeadlineExceededError,
    RequestCancelledError,
)
from vistazo_client._local.pool import DECODE_BYTES, Pool
from vistazo_preprocessing.preprocessor import Preprocessor

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def client(server, open_client):
    with open_client(server.address, timeout=5, preprocess="local") as client:
        yield client


@dataclass
class Held:
    """Every image is held in preparation: when the first is, and when they may go on."""

    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def held(monkeypatch):
    held, made = Held(), Preprocessor.model_input

    def model_input(self, *arguments):
        held.begun.set()
        held.go.wait(30)
        return made(self, *arguments)

    monkeypatch.setattr(Preprocessor, "model_input", model_input)
    yield held
    held.go.set()


def test_an_image_that_takes_too_long_misses_the_deadline(told, client, held):
    with pytest.raises(DeadlineExceededError, match=r"not prepared within 0\.05 s"):
        client.classify(shade(1), model="resnet18", timeout=0.05)
    held.go.set()

    assert told.service.requests == []


def test_an_image_of_a_stream_that_takes_too_long_misses_its_deadline(told, client, held):
    def images():
        yield 1, shade(1)
        # It was taken before this.
        late = time.monotonic() + 0.002
        while time.monotonic() < late:
            pass
        held.go.set()

    ((number, result),) = client.classify_stream(images(), model="resnet18", timeout=0.002)

    assert (number, type(result.error)) == (1, DeadlineExceededError)
    assert told.service.stream_requests == []


@pytest.mark.parametrize("streamed", [False, True], ids=["list", "stream"])
def test_closing_ends_what_is_being_prepared(told, open_client, held, streamed):
    failures = []
    with open_client(told.address, preprocess="local", timeout=30) as client:

        def classify():
            images = [shade(1)] * 20
            try:
                if streamed:
                    list(client.classify_stream(enumerate(images), model="resnet18"))
                else:
                    client.classify(images, model="resnet18")
            except RequestCancelledError as error:
                failures.append(str(error))

        caller = threading.Thread(target=classify)
        caller.start()
        assert held.begun.wait(20)
        client.close()
        held.go.set()
        caller.join(20)

    assert [("closed" in failure) for failure in failures] == [True]
    assert (told.service.requests, told.service.stream_requests) == ([], [])


async def test_a_task_that_is_cancelled_while_its_images_are_prepared_leaves_the_client_sound(told, held):
    async with AsyncClient(told.address, preprocess="local", timeout=30) as client:
        task = asyncio.create_task(client.classify([shade(1)] * 20, model="resnet18"))
        assert await asyncio.to_thread(held.begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.go.set()
        result = await client.classify(shade(2), model="resnet18")

    assert result.top.label == label(2)
    assert sent(told) == [(pixels(2), "first")]


def test_a_closed_client_says_so(told, open_client):
    client = open_client(told.address, preprocess="local")
    with client:
        client.classify(shade(1), model="resnet18")
        client.close()
        with pytest.raises((RuntimeError, RequestCancelledError), match="closed"):
            client.classify(shade(1), model="resnet18")


def test_a_stream_that_is_left_early_leaves_nothing_behind(told, client):
    for _ in client.classify_stream(((n, shade(n % 250)) for n in range(10_000)), model="resnet18"):
        break

    assert client.classify(shade(1), model="resnet18").top.label == label(1)


def test_large_images_share_a_budget_of_memory():
    pool, order = Pool(), []
    begun, go = threading.Event(), threading.Event()

    def large(name, size):
        with pool.hold(size):
            order.append(name)
            begun.set()
            assert go.wait(20)

    pool.threads = 2
    first = pool.submit(large, "first", DECODE_BYTES * 2)
    assert begun.wait(20)
    second = pool.submit(large, "second", 1)
    assert order == ["first"]
    go.set()
    first.result(20)
    second.result(20)
    pool.close()

    assert order == ["first", "second"]

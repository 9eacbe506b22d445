"""What only AsyncClient has: cancellation, its event loop, and the same surface as Client."""

import asyncio
import inspect
import threading
from contextlib import aclosing
from itertools import count

import pytest

from vistazo_client import AsyncClient, Client, RequestCancelledError

PATIENCE_SECONDS = 20.0


@pytest.fixture
async def aio(server):
    async with AsyncClient(server.address, timeout=10) as client:
        yield client


async def until(condition):
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def surface(kind):
    return {name for name in dir(kind) if not name.startswith("_")} | {"__init__"}


def parameters(function):
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
    ]


def test_both_clients_have_the_same_surface():
    assert surface(AsyncClient) == surface(Client)


@pytest.mark.parametrize("name", sorted(surface(Client) - {"address"}))
def test_both_clients_take_the_same_arguments(name):
    assert parameters(getattr(AsyncClient, name)) == parameters(getattr(Client, name))
    assert getattr(AsyncClient, name).__doc__ or name == "__init__"


async def test_cancelling_a_task_cancels_its_request(aio, server):
    cancelled = threading.Event()

    def wait(request, context):
        context.add_callback(cancelled.set)
        server.stopping.wait(30)

    server.service.script = wait
    asking = asyncio.create_task(aio.classify(b"a cat"))
    await until(lambda: server.service.running)
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await asyncio.to_thread(cancelled.wait, PATIENCE_SECONDS)


async def test_a_timeout_of_asyncio_ends_a_call_too(aio, server):
    server.never_answer()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await aio.classify([b"a cat"] * 100)


async def test_cancelling_a_list_cancels_every_request_of_it(aio, server):
    server.never_answer()
    asking = asyncio.create_task(aio.classify([b"a cat"] * 1000))
    await until(lambda: server.service.running == 2)
    before = asyncio.all_tasks()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    assert asking.cancelled()
    assert {task for task in before if task.get_name() != "x" and not task.done()} == {asyncio.current_task()}


async def test_cancelling_a_stream_leaves_no_task_behind(aio, server):
    started = asyncio.all_tasks()
    server.service.stream_script = lambda request, context: server.stopping.wait(30) and None

    async def read():
        async for _ in aio.classify_stream((number, b"a cat") for number in count()):
            pass

    reading = asyncio.create_task(read())
    await until(lambda: server.service.stream_requests)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await until(lambda: asyncio.all_tasks() == started)


async def test_a_stream_takes_an_asynchronous_source_and_answers_while_it_waits(aio):
    answered = asyncio.Event()

    async def images():
        yield 1, b"first"
        await asyncio.wait_for(answered.wait(), PATIENCE_SECONDS)
        yield 2, b"second"

    labels = []
    async for number, result in aio.classify_stream(images()):
        labels.append((number, result.top.label))
        answered.set()

    assert labels == [(1, "first"), (2, "second")]


async def test_leaving_a_stream_early_closes_it(aio, server):
    cancelled = threading.Event()
    server.service.stream_script = lambda request, context: context.add_callback(cancelled.set) and None
    async with aclosing(aio.classify_stream((number, b"a cat") for number in count())) as results:
        async for number, _ in results:
            if number > 50:
                break

    assert await asyncio.to_thread(cancelled.wait, PATIENCE_SECONDS)


async def test_the_loop_goes_on_while_images_are_read(aio):
    at_work, released = threading.Event(), threading.Event()

    def images():
        at_work.set()
        assert released.wait(PATIENCE_SECONDS)
        yield b"a cat"

    asking = asyncio.create_task(aio.classify(images()))
    await until(at_work.is_set)
    released.set()

    assert (await asking)[0].top.label == "a cat"


async def test_closing_ends_the_calls_and_streams_that_other_tasks_are_in(server):
    client = AsyncClient(server.address, timeout=30)
    server.never_answer()
    server.service.stream_script = lambda request, context: server.stopping.wait(30) and None

    async def read():
        return [pair async for pair in client.classify_stream([(1, b"a cat")])]

    calls = [asyncio.create_task(client.classify(b"a cat")), asyncio.create_task(read())]
    await until(lambda: server.service.running and server.service.stream_requests)
    await client.close()

    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, RequestCancelledError)


async def test_one_client_serves_many_tasks_each_with_its_own_answer(aio):
    results = await asyncio.gather(*(aio.classify(b"image %d" % number) for number in range(200)))

    assert [result.top.label for result in results] == [f"image {number}" for number in range(200)]


async def test_another_event_loop_is_refused(aio):
    await aio.classify(b"a cat")

    def in_another_loop():
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            asyncio.run(aio.classify(b"a cat"))

    await asyncio.to_thread(in_another_loop)

"""The requests of a stream: read while they may be, worked on together, answered however the reading ends."""

import asyncio
import gc
from collections import deque

import pytest

from vistazo_server.errors import DrainingError, InvalidRequestError, UnauthenticatedError
from vistazo_server.rpc.stream import RECHECK_SECONDS, REQUESTS_IN_FLIGHT, OpenStreams, answers

pytestmark = pytest.mark.looptime


class Caller:
    """What one caller sends, as grpc hands it out: one at a time, each as it comes, None at the end."""

    def __init__(self):
        self._sent = deque()
        self._came = asyncio.Event()
        self.reads = 0
        self.cancelled_reads = 0

    def send(self, *requests):
        self._sent.extend(requests)
        self._came.set()

    def end(self):
        self.send(None)

    async def read(self):
        self.reads += 1
        try:
            while not self._sent:
                self._came.clear()
                await self._came.wait()
        except asyncio.CancelledError:
            self.cancelled_reads += 1
            raise
        request = self._sent.popleft()
        if isinstance(request, Exception):
            raise request
        return request


class Answers:
    """Collects what `answers` yields, and how that ended."""

    def __init__(self, caller, answer, *, in_order=False, streams=None, recheck=None):
        self.got = []
        self.task = asyncio.create_task(
            self._collect(caller, answer, in_order, streams or OpenStreams(), recheck)
        )

    async def _collect(self, caller, answer, in_order, streams, recheck):
        with streams.reading(caller.read, recheck) as requests:
            async for response in answers(requests, answer, in_order=in_order):
                self.got.append(response)

    async def failure(self):
        """Return what ended the stream, None when it ended in peace."""
        try:
            await self.task
        except Exception as error:  # noqa: BLE001  the tests say which it is to be
            return type(error)
        return None


async def at_once(request):
    return request


async def settle():
    """Return when everything that can happen now has happened: time is virtual."""
    await asyncio.sleep(0.001)


@pytest.fixture
def streams():
    return OpenStreams()


@pytest.fixture(autouse=True)
async def _no_task_is_left():
    yield
    left = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    # Of a read that is under way, only grpc knows when it ends.
    reads = {task for task in left if "Caller.read" in repr(task.get_coro())}
    if left - reads:
        # Time is real here. What was cancelled last may need some.
        _, stuck = await asyncio.wait(left - reads, timeout=10)
        assert stuck == set()
    for task in reads:
        task.cancel()


# The drain


@pytest.mark.parametrize("in_order", [False, True])
async def test_an_idle_stream_ends_as_soon_as_the_drain_begins(streams, in_order):
    caller = Caller()
    stream = Answers(caller, at_once, streams=streams, in_order=in_order)
    caller.send("a")
    await asyncio.sleep(100)
    streams.drain()
    began = asyncio.get_running_loop().time()

    assert await stream.failure() is DrainingError
    assert stream.got == ["a"]
    assert asyncio.get_running_loop().time() == began


@pytest.mark.parametrize("in_order", [False, True])
async def test_what_was_read_before_the_drain_is_answered_and_nothing_more_is_read(streams, in_order):
    async def slowly(request):
        await asyncio.sleep(10)
        return request

    caller = Caller()
    stream = Answers(caller, slowly, streams=streams, in_order=in_order)
    caller.send("a", "b", "c")
    await settle()
    streams.drain()
    await settle()
    reads = caller.reads
    caller.send("d", "e")

    assert await stream.failure() is DrainingError
    assert sorted(stream.got) == ["a", "b", "c"]
    assert caller.reads == reads


async def test_a_busy_stream_takes_no_more_requests_once_the_drain_began(streams):
    caller = Caller()
    stream = Answers(caller, at_once, streams=streams)

    async def write():
        for number in range(1000):
            caller.send(number)
            await asyncio.sleep(0.01)

    writing = asyncio.create_task(write())
    await asyncio.sleep(1.005)
    streams.drain()

    assert await stream.failure() is DrainingError
    # The read that was under way may bring one.
    assert stream.got == list(range(101))
    writing.cancel()


async def test_a_stream_that_its_caller_has_ended_ends_in_peace_though_the_server_drains(streams):
    async def slowly(request):
        await asyncio.sleep(10)
        return request

    caller = Caller()
    stream = Answers(caller, slowly, streams=streams)
    caller.send("a", "b")
    caller.end()
    await settle()
    streams.drain()

    assert await stream.failure() is None
    assert sorted(stream.got) == ["a", "b"]


async def test_the_callers_end_counts_when_it_comes_at_the_moment_of_the_drain(streams):
    caller = Caller()
    stream = Answers(caller, at_once, streams=streams)
    await settle()
    caller.end()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    streams.drain()

    assert await stream.failure() is None


async def test_a_stream_that_comes_while_the_server_drains_is_not_read(streams):
    streams.drain()
    caller = Caller()
    caller.send("a")
    stream = Answers(caller, at_once, streams=streams)

    assert await stream.failure() is DrainingError
    assert (stream.got, caller.reads) == ([], 0)


async def test_each_stream_gets_an_error_of_its_own(streams):
    """One that they shared would collect the frames of all."""
    ended = [Answers(Caller(), at_once, streams=streams) for _ in range(3)]
    await settle()
    streams.drain()
    await settle()

    assert len({id(stream.task.exception()) for stream in ended}) == 3


async def test_a_full_stream_answers_what_it_holds_when_the_drain_comes(streams):
    """Its reader waits for room then, and not for a request."""
    gate = asyncio.Event()

    async def wait(request):
        await gate.wait()
        return request

    caller = Caller()
    caller.send(*range(2 * REQUESTS_IN_FLIGHT))
    stream = Answers(caller, wait, streams=streams)
    await settle()
    streams.drain()
    await settle()
    assert not stream.task.done()
    gate.set()

    assert await stream.failure() is DrainingError
    # One more than fit was read before the drain.
    assert sorted(stream.got) == list(range(REQUESTS_IN_FLIGHT + 1))


async def test_a_read_under_way_is_not_cancelled_but_ends_unheeded(streams):
    """grpc frees no message that comes after its read was cancelled."""
    problems = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    for late in ("a message", InvalidRequestError("no message")):
        caller = Caller()
        stream = Answers(caller, at_once, streams=streams)
        await settle()
        streams.drain()
        assert await stream.failure() is DrainingError
        await settle()
        caller.send(late)
        await settle()
        assert (stream.got, caller.cancelled_reads) == ([], 0)
        streams = OpenStreams()

    del stream
    gc.collect()
    assert problems == []


async def test_streams_that_have_ended_are_forgotten(streams):
    for end in (Caller.end, lambda caller: caller.send(InvalidRequestError("bad"))):
        caller = Caller()
        stream = Answers(caller, at_once, streams=streams)
        await settle()
        end(caller)
        await stream.failure()
    stream = Answers(Caller(), at_once, streams=streams)
    await settle()
    assert len(streams._streams) == 1
    stream.task.cancel()
    await asyncio.wait({stream.task})

    assert len(streams._streams) == 0


# Whether a stream may stay


class Permission:
    """Raises once it was taken away, and says when it was asked."""

    def __init__(self):
        self.given = True
        self.asked = 0

    def __call__(self):
        self.asked += 1
        if not self.given:
            raise UnauthenticatedError("the token is not known, or no longer")


async def test_an_idle_stream_ends_soon_after_its_permission():
    allowed = Permission()
    stream = Answers(Caller(), at_once, recheck=allowed)
    await asyncio.sleep(100.5)
    allowed.given = False
    began = asyncio.get_running_loop().time()

    assert await stream.failure() is UnauthenticatedError
    assert asyncio.get_running_loop().time() - began <= RECHECK_SECONDS
    assert 100 <= allowed.asked <= 102  # no busy loop


async def test_without_permission_no_request_is_handed_on_and_those_before_are_answered():
    allowed = Permission()
    begun = []

    async def slowly(request):
        begun.append(request)
        await asyncio.sleep(10)
        return request

    caller = Caller()
    stream = Answers(caller, slowly, recheck=allowed)
    caller.send("a", "b")
    await settle()
    allowed.given = False
    caller.send("c")

    assert await stream.failure() is UnauthenticatedError
    assert sorted(stream.got) == begun == ["a", "b"]


async def test_a_request_that_takes_its_time_to_come_is_not_lost_to_the_looking():
    allowed = Permission()
    caller = Caller()
    stream = Answers(caller, at_once, recheck=allowed)
    for number in range(20):
        await asyncio.sleep(RECHECK_SECONDS * (0.9 + number / 100))
        caller.send(number)
    caller.end()

    assert await stream.failure() is None
    assert stream.got == list(range(20))
    assert caller.reads == 21


# Answering


@pytest.mark.parametrize("in_order", [False, True])
async def test_answers_come_as_they_are_ready_or_in_the_order_asked(in_order):
    async def sleep(seconds):
        await asyncio.sleep(seconds)
        return seconds

    caller = Caller()
    caller.send(3, 1, 2)
    caller.end()
    stream = Answers(caller, sleep, in_order=in_order)

    assert await stream.failure() is None
    assert stream.got == ([3, 1, 2] if in_order else [1, 2, 3])


@pytest.mark.parametrize("in_order", [False, True])
async def test_no_more_is_read_than_there_is_room_for(in_order):
    begun = 0

    async def wait(request):
        nonlocal begun
        begun += 1
        await gate.acquire()

    gate = asyncio.Semaphore(0)
    caller = Caller()
    caller.send(*range(1000))
    stream = Answers(caller, wait, in_order=in_order)
    await settle()

    assert begun == REQUESTS_IN_FLIGHT
    assert caller.reads == REQUESTS_IN_FLIGHT + 1
    # And for each that was answered and taken, one more.
    gate.release()
    await settle()
    assert (begun, caller.reads) == (REQUESTS_IN_FLIGHT + 1, REQUESTS_IN_FLIGHT + 2)
    stream.task.cancel()


@pytest.mark.parametrize("in_order", [False, True])
async def test_what_ends_the_reading_comes_after_the_answers(in_order):
    async def slowly(request):
        await asyncio.sleep(5)
        return request

    caller = Caller()
    caller.send("a", "b", InvalidRequestError("no message"))
    stream = Answers(caller, slowly, in_order=in_order)

    assert await stream.failure() is InvalidRequestError
    assert sorted(stream.got) == ["a", "b"]


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("after", range(0, 40, 3))
async def test_a_stream_may_be_left_at_any_moment(streams, in_order, after):
    """Wherever it waits then; that no task stays behind, each test here checks."""

    async def slowly(request):
        await asyncio.sleep(0.002 * (request % 3))
        return request

    caller = Caller()
    stream = Answers(caller, slowly, in_order=in_order, streams=streams, recheck=Permission())
    for number in range(after):
        caller.send(number)
        await asyncio.sleep(0 if number % 2 else 0.0005)
    if after % 2:
        streams.drain()
    stream.task.cancel()
    await asyncio.wait({stream.task})

    assert stream.task.cancelled() or stream.task.exception() is not None

"""The door: errors that pass through it keep nobody's frames, and streams of requests end with the drain."""

import asyncio
import gc
import sys
import traceback
from contextlib import asynccontextmanager, contextmanager

import grpc
import grpc.aio
import pytest
import structlog
from grpc._cython.cygrpc import ExecuteBatchError
from prometheus_client import CollectorRegistry

from vistazo_server.errors import InferenceError, InvalidRequestError, without_frames
from vistazo_server.rpc.interceptors import RpcInterceptor
from vistazo_server.rpc.tokens import AUTHORIZATION, Tokens
from vistazo_server.telemetry.metrics import Metrics

SERVICE = "vistazo.v1.ClassificationService"
PATIENCE_SECONDS = 30.0
CALLS = 20
LAST_CALLS = 3
"""grpc itself keeps the last one or two calls until others come."""
TOKEN = "a-token-of-the-tests"
GROUPS_LET_GO = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1),
    reason="this Python's task groups keep the errors of their tasks in a cycle (python/cpython#124958)",
)
"""The server itself has no task groups; a handler may."""


class Message:
    """A request."""

    def __init__(self, data):
        self.data = data


@contextmanager
def only_counting():
    """Hold Python's collector of reference cycles off."""
    gc.collect()
    gc.freeze()  # what there is now need not be looked at, either
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def no_more_than(allowed, kind):
    """Return once there are so few objects of this type: grpc is done with a call after its caller is."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(type(found) is kind for found in gc.get_objects()) > allowed:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def door(tokens=None, service=SERVICE, registry=None, **handlers):
    """Hold an interceptor before `handlers`, methods of a service, and a channel to it."""
    server = grpc.aio.server()
    interceptor = RpcInterceptor(Metrics(registry or CollectorRegistry()), server, tokens=tokens)
    made = {
        name: make(behaviour, request_deserializer=Message) for name, (make, behaviour) in handlers.items()
    }
    interceptor.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, made)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield interceptor, channel
    finally:
        await server.stop(0)


def unary(behaviour):
    return grpc.unary_unary_rpc_method_handler, behaviour


def stream(behaviour):
    return grpc.stream_stream_rpc_method_handler, behaviour


def ask(channel, name="Classify", data=b"x"):
    return channel.unary_unary(f"/{SERVICE}/{name}")(data, timeout=PATIENCE_SECONDS)


async def status(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


# Errors and frames


@pytest.mark.parametrize(
    "error", [InferenceError("bad sample"), RuntimeError("a bug"), InvalidRequestError("no")]
)
async def test_who_was_served_with_one_that_failed_is_answered(error):
    """Both wait for one coroutine, which the failure of the first has passed through."""
    waiting = []
    told = asyncio.Event()

    def fail():
        raise error

    async def serve_both():
        first, second = waiting
        try:
            fail()
        except Exception as failure:  # noqa: BLE001  whatever the case at hand is
            first.set_exception(failure)
        await told.wait()
        second.set_result(b"the answer")

    async def answer(request, context):
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        if len(waiting) == 2:
            serving.append(asyncio.create_task(serve_both()))
        return await future

    serving = []
    async with door(Classify=unary(answer)) as (_, channel):
        first = asyncio.create_task(status(ask(channel)))
        while not waiting:
            await asyncio.sleep(0)
        second = asyncio.create_task(asyncio.wait_for(ask(channel), PATIENCE_SECONDS))
        assert await first != "OK"
        told.set()

        assert await second == b"the answer"


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_a_stream_whose_connection_ends_before_grpc_knows_is_cancelled_and_no_fault(kind):
    """grpc then raises an InternalError of its own out of a read or a write."""

    async def behave(request, context):
        if kind == "read":
            raise ExecuteBatchError("Failed execute_batch: (ReceiveMessageOperation,)")
        await context.write(b"x")
        raise ExecuteBatchError("Failed execute_batch: (SendMessageOperation,)")

    registry = CollectorRegistry()
    with structlog.testing.capture_logs() as logged:
        async with door(registry=registry, Classify=stream(behave)) as (_, channel):
            call = channel.stream_stream(f"/{SERVICE}/Classify")(timeout=1)
            assert await status(drained(call)) != "OK"
            while not (ended := handled(registry)):
                await asyncio.sleep(0.01)

    assert ended == {"CANCELLED": 1}
    assert [line for line in logged if line["log_level"] != "debug"] == []


async def drained(call):
    async for _ in call:
        pass


def handled(registry):
    """Return how many RPCs ended with each status."""
    return {
        sample.labels["grpc_code"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "grpc_server_handled_total" and sample.value
    }


class FakeContext:
    """As much of grpc's context as a call that fails needs; keeps what it was aborted with, as grpc does."""

    def __init__(self):
        self.aborted = None

    def set_trailing_metadata(self, metadata):
        pass

    def time_remaining(self):
        return None

    def invocation_metadata(self):
        return ()

    async def abort(self, code, details="", trailing_metadata=()):
        self.aborted = grpc.aio.AbortError(details)
        raise self.aborted


def chain(error):
    """Return an error and all that are reached from it."""
    found, to_see = [], [error]
    while to_see:
        if (error := to_see.pop()) is not None and error not in found:
            found.append(error)
            to_see += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return found


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("make", [InferenceError, ValueError])
@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_what_grpc_keeps_leads_nowhere_into_the_engine(kind, make, grouped):
    errors = []

    def engine():
        raise OSError("of the driver")

    async def work():
        try:
            engine()
        except OSError as cause:
            errors.append(make("it failed"))
            raise errors[0] from cause

    async def answer(request, context):
        if not grouped:
            await work()
        async with asyncio.TaskGroup() as group:
            group.create_task(work())

    async def answers(requests, context):
        yield await answer(requests, context)

    interceptor = RpcInterceptor(Metrics(CollectorRegistry()), None)  # it only hands the handlers on
    factory, behaviour = unary(answer) if kind == "unary" else stream(answers)
    rpc = interceptor.rpc(factory(behaviour, request_deserializer=Message), f"/{SERVICE}/Any")
    context = FakeContext()
    if kind == "unary":
        answering = rpc.handler.unary_unary(rpc.handler.request_deserializer(b""), context)
    else:
        answering = anext(rpc.handler.stream_stream(no_requests(), context))
    with pytest.raises(grpc.aio.AbortError):
        await answering

    assert (errors[0].__traceback__, errors[0].__cause__, errors[0].__context__) == (None, None, None)
    kept = chain(context.aborted)
    assert [error for error in kept if isinstance(error, OSError)] == []
    frames = {frame.name for error in kept for frame in traceback.extract_tb(error.__traceback__)}
    assert frames & {"engine", "work", "answer", "answers"} == set()


async def no_requests():
    for request in ():
        yield request


def test_errors_of_a_group_let_go_each_and_the_error_itself_comes_back():
    def fail(message):
        try:
            {}[message]
        except KeyError:
            raise ValueError(message)  # noqa: B904  its context is the point

    errors = []
    for message in "ab":
        with pytest.raises(ValueError, match=message) as failed:
            fail(message)
        errors.append(failed.value)
    group = ExceptionGroup("outer", [errors[0], ExceptionGroup("inner", [errors[1]])])

    assert without_frames(group) is group
    assert [error.__traceback__ for error in errors] == [None, None]
    assert len(chain(group)) == 4


@pytest.mark.parametrize("grouped", [False, pytest.param(True, marks=GROUPS_LET_GO)])
@pytest.mark.parametrize("error", [InferenceError, ValueError])
@pytest.mark.parametrize("kind", ["unary", "generates", "writes"])
async def test_a_request_that_failed_is_gone_without_the_collector_of_cycles(kind, error, grouped):
    requests = []

    async def work(request):
        # The usual cycle: the frame has the future, that the error, and that the frame.
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error("it failed"))
        await future

    async def answer(request, context):
        requests.append(request.data)
        if not grouped:
            await work(request)
        async with asyncio.TaskGroup() as group:
            group.create_task(work(request))

    async def generate(requests, context):
        async for request in requests:
            yield await answer(request, context)

    async def write(requests, context):
        async for request in requests:
            await context.write(await answer(request, context))

    methods = {"Classify": unary(answer), "generates": stream(generate), "writes": stream(write)}
    async with door(**methods) as (_, channel):
        with only_counting():
            for _ in range(CALLS):
                if kind == "unary":
                    assert await status(ask(channel)) != "OK"
                    continue
                call = open_stream(channel, kind, name=kind)
                await call.write(b"x")
                assert await ending(call, kind) != "OK"
            await no_more_than(0, Message)
            await no_more_than(LAST_CALLS, grpc.aio.AbortError)

    assert len(requests) == CALLS


async def test_those_who_are_turned_away_leave_nothing_behind():
    async def answer(request, context):
        raise AssertionError("nobody comes so far")

    async with door(Classify=unary(answer)) as (interceptor, channel):
        await interceptor.refuse_new()
        with only_counting():
            for _ in range(CALLS):
                assert await status(ask(channel)) == "UNAVAILABLE"
            await no_more_than(LAST_CALLS, grpc.aio.AbortError)


# Streams of requests


def of_every_kind():
    """Return behaviours of all kinds with a stream of requests, each of which answers with their data."""

    async def generate(requests, context):
        async for request in requests:
            yield request.data

    async def write(requests, context):
        async for request in requests:
            await context.write(request.data)

    async def gather(requests, context):
        return b"".join([request.data async for request in requests])

    return {
        "generates": (grpc.stream_stream_rpc_method_handler, generate),
        "writes": (grpc.stream_stream_rpc_method_handler, write),
        "gathers": (grpc.stream_unary_rpc_method_handler, gather),
    }


def open_stream(channel, kind, name="ClassifyStream", metadata=()):
    make = channel.stream_unary if kind == "gathers" else channel.stream_stream
    return make(f"/{SERVICE}/{name}")(timeout=PATIENCE_SECONDS, metadata=metadata)


async def ending(call, kind):
    """Return how a stream ended."""
    try:
        if kind == "gathers":
            await call
        else:
            while await call.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return (await call.code()).name


@pytest.mark.parametrize("kind", of_every_kind())
async def test_every_kind_of_stream_ends_when_the_server_drains(kind):
    async with door(ClassifyStream=of_every_kind()[kind]) as (interceptor, channel):
        idle = open_stream(channel, kind)
        await idle.write(b"a")
        finished = open_stream(channel, kind)
        await finished.write(b"a")
        await finished.done_writing()
        assert await ending(finished, kind) == "OK"
        if kind != "gathers":
            assert await idle.read() == b"a"
        interceptor.end_streams()

        assert await ending(idle, kind) == "UNAVAILABLE"
        assert await ending(open_stream(channel, kind), kind) == "UNAVAILABLE"
        async with asyncio.timeout(PATIENCE_SECONDS):
            await interceptor.wait_until_idle()


@pytest.mark.parametrize("kind", of_every_kind())
@pytest.mark.parametrize(
    ("line", "ended"), [("", "UNAUTHENTICATED"), (f"a model-control {TOKEN}", "PERMISSION_DENIED")]
)
async def test_every_kind_of_stream_ends_with_its_token(tmp_path, kind, line, ended):
    path = tmp_path / "tokens"
    path.write_text(f"a inference {TOKEN}\n")
    now = 0.0
    tokens = Tokens(path, clock=lambda: now)
    async with door(tokens, ClassifyStream=of_every_kind()[kind]) as (_, channel):
        call = open_stream(channel, kind, metadata=[(AUTHORIZATION, f"Bearer {TOKEN}")])
        await call.write(b"a")
        if kind != "gathers":
            assert await call.read() == b"a"
        path.write_text(line + "\n# nobody else\n")
        now += 2
        await call.write(b"b")

        assert await ending(call, kind) == ended


@pytest.mark.parametrize(
    ("method", "held"),
    [
        (f"/{SERVICE}/ClassifyStream", True),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", False),
        ("/grpc.health.v1.Health/Watch", False),
    ],
)
async def test_a_drain_waits_for_work_and_not_for_those_who_look_on(method, held):
    begun, gate = asyncio.Event(), asyncio.Event()

    async def wait(requests, context):
        begun.set()
        await gate.wait()
        yield b""

    _, service, name = method.split("/")
    async with door(service=service, **{name: stream(wait)}) as (interceptor, channel):
        call = channel.stream_stream(method)(timeout=PATIENCE_SECONDS)
        await begun.wait()
        idle = asyncio.create_task(interceptor.wait_until_idle())
        await asyncio.sleep(0)
        assert idle.done() is not held
        gate.set()
        assert await ending(call, name) == "OK"
        await asyncio.wait_for(idle, PATIENCE_SECONDS)

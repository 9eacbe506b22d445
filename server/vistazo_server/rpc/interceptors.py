"""The door: who may call, what each RPC is given, and how the server closes it."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from vistazo_server.errors import DrainingError, InvalidRequestError, ServingError
from vistazo_server.rpc.calls import Rpc, Work, freed, no_memory, tell_id
from vistazo_server.rpc.deadline import Context
from vistazo_server.rpc.stream import OpenStreams
from vistazo_server.rpc.tokens import Metadata, Tokens, authorize
from vistazo_server.telemetry import request_id
from vistazo_server.telemetry.metrics import Metrics
from vistazo_server.telemetry.tracing import Tracing

WATCHING: Final = frozenset(
    {"/grpc.health.v1.Health/Watch", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}
)
"""RPCs that last as long as their callers like and are no work that a drain should wait for."""

HEALTH: Final = "/grpc.health.v1.Health/"
"""Its answers matter most while the server drains."""

QUIET_SECONDS: Final = 0.05
"""When for so long nobody was turned away, callers have noticed that the server drains."""
LONGEST_NOTICE_SECONDS: Final = 1.0
"""There are callers that never do."""


class RpcInterceptor:
    """Stands between grpc and the servicers.

    Checks who calls, gives each RPC its id, translates ServingError, counts, times and logs. Given to the
    generated `add_…Servicer_to_server` functions in place of the server. Not a `grpc.aio.ServerInterceptor`:
    those are awaited anew for each RPC, which costs a small request a tenth of its time; this wraps each
    handler once.
    """

    def __init__(
        self,
        metrics: Metrics,
        server: grpc.aio.Server,
        *,
        tokens: Tokens | None = None,
        tracing: Tracing | None = None,
        tells_every_id: bool = False,
    ) -> None:
        self._metrics = metrics
        self._server = server
        self._tokens = tokens
        self._tracing = tracing
        # With each request in the log or in a trace, everybody may have to look theirs up.
        self._tells_every_id = tells_every_id or tracing is not None
        self._draining = False
        self._turned_away = 0
        self._work = Work()
        self._streams = OpenStreams()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add handlers to the server, wrapped."""
        self._server.add_generic_rpc_handlers([_Wrapped(handler, self) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Ignore what generated code offers a second time for servers that look methods up by name."""

    def end_streams(self) -> None:
        """Read no further request of any stream.

        Each ends with UNAVAILABLE once what was read of it is answered; in peace if its caller had ended it.
        """
        self._streams.drain()

    async def refuse_new(self) -> None:
        """Answer what comes from now on with UNAVAILABLE; return when callers have noticed.

        grpc ends what it has received and not yet handed out, when it is stopped, with CANCELLED. To a caller
        that means nothing, while UNAVAILABLE sends it elsewhere.
        """
        self._draining = True
        noticed_by = time.monotonic() + LONGEST_NOTICE_SECONDS
        while time.monotonic() < noticed_by:
            before = self._turned_away
            await asyncio.sleep(QUIET_SECONDS)
            if self._turned_away == before:
                return

    async def wait_until_idle(self) -> None:
        """Return when no RPC is under way, but for those that only watch."""
        await self._work.ended.wait()

    def rpc(self, handler: Any, method: str) -> Rpc:  # noqa: ANN401  grpc's handlers share no public type
        """Return what is kept of a method: its series, and its handler wrapped."""
        work = None if method in WATCHING else self._work
        rpc = Rpc(self._metrics, method, handler, work)
        rpc.handler = self._wrap(handler, rpc)
        return rpc

    def admit(self, rpc: Rpc, metadata: Metadata) -> Any:  # noqa: ANN401
        """Return the handler for the caller that sent `metadata`: the method's, or one that turns it away."""
        # The task that asks for the handler runs it, too.
        request_id.begin(metadata)
        if self._tracing is not None:
            self._tracing.begin(rpc.method, metadata)
        try:
            if self._tokens is not None:
                request_id.identify(authorize(self._tokens, rpc.method, metadata))
            if self._draining and not rpc.method.startswith(HEALTH):
                self._turned_away += 1
                raise DrainingError("the server is about to end; ask another")
        except ServingError as error:
            return rpc.refusing(error)
        return rpc.handler

    def _wrap(self, handler: Any, rpc: Rpc) -> Any:  # noqa: ANN401
        serialize = handler.response_serializer
        options = {
            "request_deserializer": _parser(handler),
            # A behaviour whose response is made of parts that are ready may serialise it itself.
            "response_serializer": lambda response: (
                response if type(response) is bytes else serialize(response)
            ),
        }
        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream

            async def generate(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401
                async with rpc.around(context):
                    with self._request(request, rpc, context) as given:
                        responses = behaviour(given, context)
                        del request, given, context  # see calls.freed
                        async for response in responses:
                            yield response

            async def write(request: Any, context: Context) -> None:  # noqa: ANN401
                async with rpc.around(context):
                    with self._request(request, rpc, context) as given:
                        writing = behaviour(given, context)
                        del request, given, context  # see calls.freed
                        await writing

            # A handler may yield its responses or, as the health service does, write them itself.
            stream = generate if inspect.isasyncgenfunction(behaviour) else write
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(stream, **options)

        if handler.request_streaming:

            async def take(requests: Any, context: Context) -> Any:  # noqa: ANN401
                with self._request(requests, rpc, context) as given:
                    return await handler.stream_unary(given, context)

            return grpc.stream_unary_rpc_method_handler(self._unary(take, rpc), **options)
        return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, rpc), **options)

    @contextmanager
    def _request(self, request: Any, rpc: Rpc, context: Context) -> Iterator[Any]:  # noqa: ANN401
        """Hold what a behaviour is given: its one request, or those of a stream while they may be read."""
        if not rpc.takes_stream:
            yield _taken(request)
            return
        recheck = None
        if self._tokens is not None:
            metadata = context.invocation_metadata()
            recheck = partial(authorize, self._tokens, rpc.method, metadata)

        # grpc's own iterator is part of a reference cycle, and has the last message.
        async def read() -> Any:  # noqa: ANN401
            message = await context.read()
            return None if message is grpc.aio.EOF else message

        with self._streams.reading(read, recheck) as requests:
            yield requests

    def _unary(self, behaviour: Callable[..., Awaitable[Any]], rpc: Rpc) -> Callable[..., Awaitable[Any]]:
        """Return a behaviour with one response, wrapped."""
        tells_every_id, takes_stream = self._tells_every_id, rpc.takes_stream

        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
            # An id that nobody sent, of a request that the log will not mention, is no use to anybody, and a
            # trailer of its own costs a small request a tenth of its time. An error tells it in any case.
            if tells_every_id or not request_id.is_made_up():
                tell_id(context)
            started = rpc.began()
            try:
                # Its frames alone hold the message now, and let go of it when its images are taken out.
                response = await behaviour(request if takes_stream else _taken(request), context)
            except BaseException as error:
                ending = rpc.failed(error, context, started)
                del request, context  # see calls.freed
                await freed(ending)
                raise
            rpc.ended(grpc.StatusCode.OK, started)
            return response

        return call


def _taken(held: list[Any]) -> Any:  # noqa: ANN401
    """Return the one request of a method, and leave grpc with nothing. Raises the error in its place."""
    message = held.pop()
    if isinstance(message, ServingError):
        raise message
    return message


def _has_memory(size: int) -> bool:
    try:
        bytearray(size)
    except MemoryError:
        return False
    return True


def _parser(handler: Any) -> Callable[[bytes], Any]:  # noqa: ANN401
    """Return a method's deserialiser, for which bytes that are no message are a caller's mistake.

    The one request of a method comes in a list, out of which it can be taken: grpc holds what it hands over
    until the RPC ends, and the images of those that wait would be in memory once more.

    grpc would answer UNKNOWN, and draw a traceback in the log for each. A message of a stream raises, and so
    reaches whoever reads the stream; the one request of another method takes the message's place, since what
    its deserialiser raises never reaches the handler.
    """
    parse = handler.request_deserializer

    def parsed(data: bytes) -> Any:  # noqa: ANN401
        try:
            message = parse(data)
        except DecodeError:
            error: ServingError = InvalidRequestError(
                f"request: expected a message of the method's type, got {len(data)} bytes"
            )
            if not _has_memory(2 * len(data)):
                error = no_memory()  # protobuf tells this by the same error
            if handler.request_streaming:
                raise error from None
            return [error]
        return message if handler.request_streaming else [message]

    return parsed


class _Wrapped(grpc.GenericRpcHandler):
    """A service's handlers, each wrapped when its method is first called."""

    def __init__(self, handler: grpc.GenericRpcHandler, interceptor: RpcInterceptor) -> None:
        self._handler = handler
        self._interceptor = interceptor
        self._rpcs: dict[str, Rpc] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401
        """Return the wrapped handler of a method; None: it is not this service's."""
        method = handler_call_details.method
        rpc = self._rpcs.get(method)
        if rpc is None:
            handler = self._handler.service(handler_call_details)
            if handler is None:
                return None
            # Handlers do not change while the server runs, and only methods that exist get one: bounded.
            rpc = self._rpcs[method] = self._interceptor.rpc(handler, method)
        return self._interceptor.admit(rpc, handler_call_details.invocation_metadata)

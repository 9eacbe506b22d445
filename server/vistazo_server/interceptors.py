"""Around every RPC: tokens, error → status, metrics, access log. The only place where a status is set."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from vistazo_server import request_id, tracing
from vistazo_server.access import Metadata, Tokens, authorize
from vistazo_server.codec import pushback_ms
from vistazo_server.deadline import Context, seconds_left
from vistazo_server.errors import DrainingError, InvalidRequestError, ServingError, let_go
from vistazo_server.metrics import Metrics
from vistazo_server.outcome import DEADLINE_TOLERANCE
from vistazo_server.tracing import Tracing

log = structlog.get_logger(__name__)

PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
"""Trailer that tells a retrying client how long to wait (gRPC proposal A6)."""

REASON_KEY: Final = "vistazo-error-reason"
"""Trailer that tells errors of one status apart."""

# Trailers share one header block with a limit of 8 KiB; a longer detail would break the call itself.
MAX_DETAIL_CHARACTERS: Final = 1000

WATCHING: Final = frozenset({"/grpc.health.v1.Health/Watch"})
"""RPCs that last as long as the server and are no work that a drain should wait for."""

HEALTH: Final = "/grpc.health.v1.Health/"
"""Its answers matter most while the server drains."""

QUIET_SECONDS: Final = 0.05
"""When for so long nobody was turned away, callers have noticed that the server drains."""
LONGEST_NOTICE_SECONDS: Final = 1.0
"""There are callers that never do."""

_STATUS_OF_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


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
        self._work = _Work()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add handlers to the server, wrapped."""
        self._server.add_generic_rpc_handlers([_Wrapped(handler, self) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Ignore what generated code offers a second time for servers that look methods up by name."""

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

    def rpc(self, handler: Any, method: str) -> "_Rpc":  # noqa: ANN401  grpc's handlers share no public type
        """Return what is kept of a method: its series, and its handler wrapped."""
        work = None if method in WATCHING else self._work
        rpc = _Rpc(self._metrics, method, handler, work)
        rpc.handler = self._wrap(handler, rpc)
        return rpc

    def admit(self, rpc: "_Rpc", metadata: Metadata) -> Any:  # noqa: ANN401
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

    def _wrap(self, handler: Any, rpc: "_Rpc") -> Any:  # noqa: ANN401
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
                    if type(request) is InvalidRequestError:
                        raise request
                    async for response in behaviour(request, context):
                        yield response

            async def write(request: Any, context: Context) -> None:  # noqa: ANN401
                async with rpc.around(context):
                    if type(request) is InvalidRequestError:
                        raise request
                    await behaviour(request, context)

            # A handler may yield its responses or, as the health service does, write them itself.
            stream = generate if inspect.isasyncgenfunction(behaviour) else write
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(stream, **options)

        behaviour = handler.stream_unary or handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(self._unary(behaviour, rpc), **options)

    def _unary(self, behaviour: Callable[..., Awaitable[Any]], rpc: "_Rpc") -> Callable[..., Awaitable[Any]]:
        """Return a behaviour with one response, wrapped."""
        tells_every_id = self._tells_every_id

        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
            # An id that nobody sent, of a request that the log will not mention, is no use to anybody, and a
            # trailer of its own costs a small request a tenth of its time. An error tells it in any case.
            if tells_every_id or not request_id.is_made_up():
                tell_id(context)
            started = rpc.began()
            try:
                if type(request) is InvalidRequestError:
                    raise request  # noqa: TRY301  one way out for all errors
                response = await behaviour(request, context)
            except BaseException as error:
                del request  # see errors.let_go
                await rpc.failed(error, context, started)
                raise
            rpc.ended(grpc.StatusCode.OK, started)
            return response

        return call


def _parser(handler: Any) -> Callable[[bytes], Any]:  # noqa: ANN401
    """Return a method's deserialiser, for which bytes that are no message are a caller's mistake.

    grpc would answer UNKNOWN, and draw a traceback in the log for each. A message of a stream raises, and so
    reaches whoever reads the stream; the one request of another method takes the message's place, since what
    its deserialiser raises never reaches the handler.
    """
    parse = handler.request_deserializer

    def parsed(data: bytes) -> Any:  # noqa: ANN401
        try:
            return parse(data)
        except DecodeError:
            error = InvalidRequestError(
                f"request: expected a message of the method's type, got {len(data)} bytes"
            )
            if handler.request_streaming:
                raise error from None
            return error

    return parsed


def _meaning(error: BaseException) -> BaseException:
    """Return the error that a task group wrapped, when it is the only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class _Wrapped(grpc.GenericRpcHandler):
    """A service's handlers, each wrapped when its method is first called."""

    def __init__(self, handler: grpc.GenericRpcHandler, interceptor: RpcInterceptor) -> None:
        self._handler = handler
        self._interceptor = interceptor
        self._rpcs: dict[str, _Rpc] = {}

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


class _Work:
    """How many RPCs are under way that a drain must wait for."""

    def __init__(self) -> None:
        self._count = 0
        self.ended = asyncio.Event()
        self.ended.set()

    def begin(self) -> None:
        self._count += 1
        self.ended.clear()

    def end(self) -> None:
        self._count -= 1
        if self._count == 0:
            self.ended.set()


class _Rpc:
    """One method and its series."""

    def __init__(self, metrics: Metrics, method: str, handler: Any, work: "_Work | None") -> None:  # noqa: ANN401
        _, service, name = method.split("/", 2)
        kinds = {(False, False): "unary", (True, False): "client_stream", (False, True): "server_stream"}
        kind = kinds.get((handler.request_streaming, handler.response_streaming), "bidi_stream")
        self.method = method
        self.handler: Any = None
        """The method's own, wrapped."""
        self._work = work
        self._labels = (kind, service, name)
        self._started = metrics.rpc_started.labels(*self._labels)
        self._seconds = metrics.rpc_seconds.labels(*self._labels)
        self._handled = metrics.rpc_handled
        self._by_code: dict[grpc.StatusCode, Any] = {}
        self._count(grpc.StatusCode.OK, 0)

    def around(self, context: Context) -> "_Call":
        """Return what to run a stream's behaviour inside: whatever it raises becomes a status."""
        return _Call(self, context)

    def refusing(self, reason: ServingError) -> Any:  # noqa: ANN401
        """Return a handler that turns a caller away."""

        async def refuse(requests: object, context: Context) -> None:
            del requests
            async with self.around(context):
                raise reason

        # Whatever the method takes: of a stream nothing is read, and so no message of a stranger's either.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def began(self) -> float:
        """Count an RPC that begins, and return when."""
        self._started.inc()
        if self._work is not None:
            self._work.begin()
        return time.perf_counter()

    def ended(self, code: grpc.StatusCode, started: float) -> None:
        """Count, time and log an RPC that ended."""
        if self._work is not None:
            self._work.end()
        self._count(code, 1)
        seconds = time.perf_counter() - started
        self._seconds.observe(seconds)
        tracing.end(code)
        log.debug("request", method=self.method, code=code.name, ms=round(seconds * 1000, 3))

    async def failed(self, error: BaseException, context: Context, started: float) -> None:
        """End an RPC whose behaviour raised `error`: with its status, if the caller still listens."""
        error = _meaning(error)
        code = _code_of(error, context)
        self.ended(code, started)
        if isinstance(error, ServingError):
            # Latecomers are expected, and may come by the thousand.
            tell = log.debug if isinstance(error, DrainingError) else log.info
            tell("request_failed", method=self.method, code=code.name, reason=str(error))
            let_go(error)
            await _abort(context, error)
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            log.error("request_crashed", method=self.method, exc_info=error)
            let_go(error)
            details = "an error of the server; its log has the reason"
            await context.abort(code, details, ((request_id.KEY, request_id.current()),))
        else:
            let_go(error)

    def _count(self, code: grpc.StatusCode, by: int) -> None:
        if code not in self._by_code:
            self._by_code[code] = self._handled.labels(*self._labels, code.name)
        self._by_code[code].inc(by)


class _Call:
    """One streaming RPC under way."""

    __slots__ = ("_context", "_rpc", "_started")

    def __init__(self, rpc: _Rpc, context: Context) -> None:
        self._rpc = rpc
        self._context = context
        self._started = 0.0

    async def __aenter__(self) -> None:
        tell_id(self._context)
        self._started = self._rpc.began()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._rpc.ended(grpc.StatusCode.OK, self._started)
        else:
            await self._rpc.failed(error, self._context, self._started)


def tell_id(context: Context) -> None:
    """Send the request's id along when the RPC ends."""
    context.set_trailing_metadata(((request_id.KEY, request_id.current()),))


def _code_of(error: BaseException, context: Context) -> grpc.StatusCode:
    """Return the status that an RPC ends with when its behaviour raised `error`."""
    if isinstance(error, ServingError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        # The caller went away, or its deadline passed while the handler ran.
        left = seconds_left(context)
        late = left is not None and left < DEADLINE_TOLERANCE
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    if isinstance(error, grpc.aio.AbortError):
        return _STATUS_OF_NUMBER.get(cast("int", context.code()), grpc.StatusCode.UNKNOWN)
    return grpc.StatusCode.INTERNAL


async def _abort(context: Context, error: ServingError) -> None:
    if seconds_left(context) == 0:
        # The caller gave up when it did, a little earlier than the server. Nobody reads a status any more,
        # and of each that cannot be sent grpcio keeps some hundred bytes for ever (grpc/grpc#43360).
        raise asyncio.CancelledError
    trailers = [(request_id.KEY, request_id.current())]
    if error.retry_after is not None:
        trailers.append((PUSHBACK_KEY, str(pushback_ms(error.retry_after))))
    if error.reason:
        trailers.append((REASON_KEY, error.reason))
    await context.abort(error.code, str(error)[:MAX_DETAIL_CHARACTERS], tuple(trailers))

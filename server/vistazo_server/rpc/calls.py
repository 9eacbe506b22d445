"""One RPC: counted, timed and logged; here, and nowhere else, what its behaviour raised becomes a status."""

import asyncio
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, cast

import grpc
import grpc.aio
import structlog

from vistazo_server.errors import DrainingError, OverloadedError, ServingError, without_frames
from vistazo_server.rpc.deadline import Context, seconds_left
from vistazo_server.rpc.wire import pushback_ms
from vistazo_server.telemetry import request_id, tracing
from vistazo_server.telemetry.metrics import Metrics
from vistazo_server.telemetry.outcome import DEADLINE_TOLERANCE

log = structlog.get_logger(__name__)

PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
"""Trailer that tells a retrying client how long to wait (gRPC proposal A6)."""

REASON_KEY: Final = "vistazo-error-reason"
"""Trailer that tells errors of one status apart."""

# Trailers share one header block with a limit of 8 KiB; a longer detail would break the call itself.
MAX_DETAIL_CHARACTERS: Final = 1000

# There may be memory again when others' images are decoded.
NO_MEMORY_RETRY_SECONDS: Final = 1.0

_STATUS_OF_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


class Work:
    """How many RPCs are under way that a drain must wait for."""

    def __init__(self) -> None:
        self._count = 0
        self.ended = asyncio.Event()
        self.ended.set()

    def begin(self) -> None:
        """One more."""
        self._count += 1
        self.ended.clear()

    def end(self) -> None:
        """One less."""
        self._count -= 1
        if self._count == 0:
            self.ended.set()


class Rpc:
    """One method and its series."""

    def __init__(self, metrics: Metrics, method: str, handler: Any, work: Work | None) -> None:  # noqa: ANN401
        _, service, name = method.split("/", 2)
        kinds = {(False, False): "unary", (True, False): "client_stream", (False, True): "server_stream"}
        kind = kinds.get((handler.request_streaming, handler.response_streaming), "bidi_stream")
        self.method = method
        self.takes_stream = bool(handler.request_streaming)
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
            tell_id(context)
            ending = self.failed(reason, context, self.began())
            del requests, context
            await freed(ending)

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
        meaning = _meaning(error)
        code = _code_of(meaning, context)
        self.ended(code, started)
        expected = isinstance(meaning, ServingError | grpc.aio.AbortError | grpc.aio.InternalError)
        crashed = isinstance(meaning, Exception) and not expected
        if crashed:
            log.error("request_crashed", method=self.method, exc_info=meaning)
        without_frames(error)
        if isinstance(meaning, ServingError):
            # Latecomers are expected, and may come by the thousand.
            tell = log.debug if isinstance(meaning, DrainingError) else log.info
            tell("request_failed", method=self.method, code=code.name, reason=str(meaning))
            await _abort(context, meaning)
        elif crashed:
            details = "an error of the server; its log has the reason"
            await context.abort(code, details, ((request_id.KEY, request_id.current()),))

    def _count(self, code: grpc.StatusCode, by: int) -> None:
        if code not in self._by_code:
            self._by_code[code] = self._handled.labels(*self._labels, code.name)
        self._by_code[code].inc(by)


class _Call:
    """One streaming RPC under way."""

    __slots__ = ("_context", "_rpc", "_started")

    def __init__(self, rpc: Rpc, context: Context) -> None:
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
            ending = self._rpc.failed(error, self._context, self._started)
            del trace, self._context
            await freed(ending)


async def freed(ending: Coroutine[Any, Any, None]) -> None:
    """Await the end of an RPC, and leave no reference cycle.

    grpc's context keeps the error that the RPC was aborted with, which has the frames that it passes through:
    those that go on have to let go of the context, and of the request.
    """
    try:
        await ending
    except grpc.aio.AbortError as aborted:
        raise without_frames(aborted) from None


def tell_id(context: Context) -> None:
    """Send the request's id along when the RPC ends."""
    context.set_trailing_metadata(((request_id.KEY, request_id.current()),))


def _code_of(error: BaseException, context: Context) -> grpc.StatusCode:
    """Return the status that an RPC ends with when its behaviour raised `error`."""
    if isinstance(error, ServingError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit | grpc.aio.InternalError):
        # The caller went away, or its deadline passed while the handler ran. Its connection may end a moment
        # before grpc knows: a read or a write of that moment fails with an InternalError.
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


def _meaning(error: BaseException) -> BaseException:
    """Return the error that a task group wrapped, when it is the only one; of a lack of memory, a status."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return no_memory() if isinstance(error, MemoryError) else error


def no_memory() -> OverloadedError:
    """Return what to tell a caller whose request there is no memory for now."""
    return OverloadedError(
        "the server has no memory left for the request", retry_after=NO_MEMORY_RETRY_SECONDS
    )

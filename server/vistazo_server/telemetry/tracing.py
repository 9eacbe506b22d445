"""Spans of a request for OpenTelemetry: the request itself, preprocess, queue and compute.

The request's span is a child of the caller's, by the W3C `traceparent` in the call's metadata. Without an
endpoint to send spans to, a stage costs one look at a context variable. The packages are in the extra
`tracing`; everything of them is imported here, and only when tracing is on.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog

from vistazo_server.errors import StartupError
from vistazo_server.telemetry import request_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

log = structlog.get_logger(__name__)

UNTRACED: Final = ("/grpc.health.", "/grpc.reflection.")
"""Services whose calls nobody looks for: probes would drown the rest."""

FLUSH_SECONDS: Final = 5.0
"""At the end of the server, for spans that are not sent yet; a collector may be gone."""

# Statuses that are the server's fault, by OpenTelemetry's conventions for gRPC servers.
_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)

_current: ContextVar["RequestSpan | None"] = ContextVar("request_span", default=None)


class Tracing:
    """Starts the spans of requests and hands them to `processor` as they end."""

    def __init__(self, processor: "SpanProcessor") -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        # What the environment says (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER) wins.
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "vistazo"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vistazo_server")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, endpoint: str) -> "Tracing":
        """Return a Tracing that sends spans to a collector by OTLP over gRPC. Raises StartupError."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
                OTLPSpanExporter,
            )
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        except ImportError as error:
            raise StartupError(
                f"--otlp-endpoint needs the Python package {error.name}: pip install 'vistazo[tracing]'"
            ) from None
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Start the span of the request under way, as a child of the caller's where there is one."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        if method.startswith(UNTRACED):
            return
        carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
        service, _, name = method[1:].partition("/")
        # One look at the wall clock for each request: it may jump, and stages must not.
        anchor = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            method[1:],
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=time.monotonic_ns() + anchor,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "vistazo.request_id": request_id.current(),
            },
        )
        _current.set(RequestSpan(self._tracer, span, anchor))

    async def close(self) -> None:
        """Send what was not sent yet, for at most FLUSH_SECONDS."""
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await asyncio.to_thread(self._provider.force_flush, int(FLUSH_SECONDS * 1000))
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            log.warning("spans_lost", reason=f"the collector did not take them in {FLUSH_SECONDS:g} s")


class RequestSpan:
    """The span of one request under way. Its stages become children of it."""

    def __init__(self, tracer: Any, span: Any, anchor: int) -> None:  # noqa: ANN401  optional packages
        self._tracer = tracer
        self._span = span
        self._anchor = anchor
        # For each clock, what its zero is in the request's wall time.
        self._zeros: dict[Callable[[], float], int] = {}

    @property
    def trace_id(self) -> str:
        """As in `traceparent`: 32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def stage(
        self, name: str, began: float, ended: float, clock: Callable[[], float], attributes: dict[str, int]
    ) -> None:
        """Add a span that began and ended at these times of `clock`, in seconds."""
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415

        if clock not in self._zeros:
            self._zeros[clock] = time.monotonic_ns() + self._anchor - int(clock() * 1e9)
        zero = self._zeros[clock]
        span = self._tracer.start_span(
            name,
            context=set_span_in_context(self._span),
            start_time=zero + int(began * 1e9),
            attributes=attributes,
        )
        span.end(zero + int(ended * 1e9))

    def end(self, code: grpc.StatusCode) -> None:
        """End the request's span with its status."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415

        self._span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code in _FAULTS:
            self._span.set_status(StatusCode.ERROR, code.name)
        self._span.end(time.monotonic_ns() + self._anchor)


def current() -> RequestSpan | None:
    """Return the span of the request under way; None when it is not traced."""
    return _current.get()


def stage(
    name: str, began: float, ended: float | None = None, *, clock: Callable[[], float], **attributes: int
) -> None:
    """Add a stage to the request under way, if it is traced; `ended` None: now. Times are of `clock`."""
    span = _current.get()
    if span is not None:
        span.stage(name, began, clock() if ended is None else ended, clock, attributes)


def end(code: grpc.StatusCode) -> None:
    """End the span of the request under way, if it is traced."""
    span = _current.get()
    if span is not None:
        span.end(code)

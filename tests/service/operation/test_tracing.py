"""Traces: which spans a request leaves, under whose, and what they say."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.images import file
from support.process import server_process, vistazo
from support.serving import PATIENCE_SECONDS, Serving, encoded, occupy, open_channel, raw, settings_for, until
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_server.server import running
from vistazo_server.telemetry import tracing

pytest.importorskip("opentelemetry.sdk", reason="the extra tracing is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

RED = raw(plain(200, 10, 10))
PHOTO = encoded(file(plain(200, 10, 10, height=40, width=40)))
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = [("traceparent", f"00-{TRACE}-{PARENT}-01")]
CLASSIFY = "vistazo.v1.ClassificationService/Classify"


class Traced:
    """A server, and the spans that it has ended."""

    def __init__(self, serving: Serving, exporter: InMemorySpanExporter) -> None:
        self.serving = serving
        self.exporter = exporter

    def spans(self) -> dict[str, ReadableSpan]:
        """Return the spans by name; fails when two have the same."""
        spans = self.exporter.get_finished_spans()
        assert len({span.name for span in spans}) == len(spans)
        return {span.name: span for span in spans}

    async def classify(self, *images: pb.Image, metadata=(), **fields):
        request = pb.ClassifyRequest(images=images, **fields)
        return await self.serving.stub.Classify(request, metadata=metadata, timeout=PATIENCE_SECONDS)


@asynccontextmanager
async def traced(models, **overrides) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    async with running(
        settings_for(models, **overrides), tracing=tracing.Tracing(SimpleSpanProcessor(exporter))
    ) as server:
        await server.loading
        async with open_channel(server.port) as channel:
            stubs = pb_grpc.ClassificationServiceStub(channel), health_pb2_grpc.HealthStub(channel)
            yield Traced(Serving(server, channel, *stubs), exporter)


async def test_a_request_is_a_child_of_its_callers_span_and_its_stages_are_children_of_it(models):
    async with traced(models) as server:
        await server.classify(PHOTO, PHOTO, metadata=[*TRACEPARENT, ("x-request-id", "order-66")])
        await until(lambda: len(server.spans()) == 4, what="four spans ended")
        spans = server.spans()

    request = spans[CLASSIFY]
    assert request.kind is SpanKind.SERVER
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert request.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "vistazo.v1.ClassificationService",
        "rpc.method": "Classify",
        "rpc.grpc.status_code": 0,
        "vistazo.request_id": "order-66",
    }
    assert request.status.status_code is StatusCode.UNSET
    stages = [spans[name] for name in ("preprocess", "queue", "compute")]
    assert {stage.parent.span_id for stage in stages} == {request.context.span_id}
    assert {stage.context.trace_id for stage in stages} == {request.context.trace_id}
    assert spans["preprocess"].attributes == {"images": 2}
    assert spans["queue"].attributes == {"samples": 2}
    assert spans["compute"].attributes["batch_size"] == 2
    # One after the other, inside the request.
    times = [time for stage in stages for time in (stage.start_time, stage.end_time)]
    assert [request.start_time, *times, request.end_time] == sorted(
        [request.start_time, *times, request.end_time]
    )
    assert request.resource.attributes["service.name"] == "vistazo"


async def test_without_a_caller_s_span_a_request_begins_a_trace(models):
    async with traced(models) as server:
        for metadata in ((), [("traceparent", "nonsense")], [("traceparent", "00-0-0-00")]):
            await server.classify(RED, metadata=metadata)
            await until(lambda: CLASSIFY in server.spans())
            assert server.spans()[CLASSIFY].parent is None
            # What needs no preprocessing has no such span.
            assert set(server.spans()) == {CLASSIFY, "queue", "compute"}
            server.exporter.clear()


async def test_a_trace_that_the_caller_does_not_record_is_not_recorded(models):
    async with traced(models) as server:
        await server.classify(RED, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-00")])
        await server.classify(RED, metadata=TRACEPARENT)
        await until(lambda: CLASSIFY in server.spans())

        assert set(server.spans()) == {CLASSIFY, "queue", "compute"}


async def test_a_request_that_is_cancelled_in_the_queue_has_no_compute(slow_models):
    async with traced(slow_models, max_batch_size=1) as server:
        busy = await occupy(server.serving, RED)
        waiting = asyncio.create_task(server.classify(RED, metadata=TRACEPARENT))
        await until(lambda: server.serving.queued() == 1)
        waiting.cancel()
        await until(lambda: server.serving.queued() == 0)
        await asyncio.gather(*busy)
        await until(lambda: len(server.exporter.get_finished_spans()) == 8, what="eight spans ended")
        spans = server.exporter.get_finished_spans()

    mine = {span.name: span for span in spans if f"{span.context.trace_id:032x}" == TRACE}
    assert set(mine) == {CLASSIFY, "queue"}
    assert mine[CLASSIFY].attributes["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert mine[CLASSIFY].status.status_code is StatusCode.UNSET  # the caller's doing


async def test_a_bad_image_has_its_preprocessing_and_no_queue(models):
    async with traced(models) as server:
        with pytest.raises(grpc.aio.AioRpcError):
            await server.classify(encoded(b"no image"))
        await until(lambda: CLASSIFY in server.spans())

        assert set(server.spans()) == {CLASSIFY, "preprocess"}
        status = server.spans()[CLASSIFY].attributes["rpc.grpc.status_code"]
        assert status == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_a_failure_of_the_server_is_an_error(models):
    async with traced(models) as server:
        lease = server.serving.server.repository.lease("tiny")
        lease.loaded.classifier._batcher._run_batch = _fails
        with pytest.raises(grpc.aio.AioRpcError):
            await server.classify(RED)
        await until(lambda: CLASSIFY in server.spans())

        assert server.spans()[CLASSIFY].status.status_code is StatusCode.ERROR
        assert server.spans()[CLASSIFY].status.description == "INTERNAL"


async def _fails(samples):
    samples()
    raise RuntimeError("broken engine")


async def test_each_request_of_a_stream_has_its_stages_below_the_stream(models):
    async with traced(models) as server:
        stream = server.serving.stub.ClassifyStream(metadata=TRACEPARENT, timeout=PATIENCE_SECONDS)
        for _ in range(3):
            await stream.write(pb.ClassifyStreamRequest(request=pb.ClassifyRequest(images=[RED])))
            await stream.read()
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
        await until(lambda: len(server.exporter.get_finished_spans()) == 7)
        spans = server.exporter.get_finished_spans()

    names = sorted(span.name.rpartition("/")[2] for span in spans)
    assert names == ["ClassifyStream", "compute", "compute", "compute", "queue", "queue", "queue"]
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}


async def test_health_leaves_no_spans(models):
    async with traced(models) as server:
        await server.serving.health.Check(health_pb2.HealthCheckRequest())
        await server.serving.stub.ListModels(pb.ListModelsRequest())
        await until(lambda: bool(server.spans()))

        assert set(server.spans()) == {"vistazo.v1.ClassificationService/ListModels"}


async def test_a_jump_of_the_wall_clock_leaves_the_stages_in_order(models, monkeypatch):
    real = time.time_ns
    async with traced(models) as server:
        jumping = iter(range(10**6))
        monkeypatch.setattr(
            "vistazo_server.telemetry.tracing.time.time_ns", lambda: real() - next(jumping) * 3600 * 10**9
        )
        await server.classify(PHOTO)
        await until(lambda: len(server.spans()) == 4)
        spans = server.spans()

    request = spans[CLASSIFY]
    for stage in ("preprocess", "queue", "compute"):
        assert request.start_time <= spans[stage].start_time <= spans[stage].end_time <= request.end_time


# The real exporter


def test_spans_reach_a_collector_and_the_log_names_the_trace(models):
    """The collector is a gRPC server that takes what OTLP sends."""
    from concurrent.futures import ThreadPoolExecutor

    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    names = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802  the .proto names it
            for resource in request.resource_spans:
                service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
                names.extend((service, span.name) for scope in resource.scope_spans for span in scope.spans)
            return trace_service_pb2.ExportTraceServiceResponse()

    collector = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    flags = ["--otlp-endpoint", f"http://127.0.0.1:{port}", "--log-level", "debug"]
    env = {"OTEL_SERVICE_NAME": "camera-7", "no_proxy": "127.0.0.1"}
    try:
        with (
            server_process(models, *flags, env=env) as server,
            grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
        ):
            stub = pb_grpc.ClassificationServiceStub(channel)
            stub.Classify(pb.ClassifyRequest(images=[RED]), metadata=TRACEPARENT, timeout=PATIENCE_SECONDS)
            # The drain sends what was not sent yet.
            server.terminate()
            assert server.wait() == 0
    finally:
        collector.stop(None)

    assert sorted(names) == [("camera-7", "compute"), ("camera-7", "queue"), ("camera-7", CLASSIFY)]
    (line,) = [line for line in server.log if line["event"] == "request"]
    assert line["trace_id"] == TRACE


def test_a_collector_that_is_not_there_holds_nobody_up(models):
    flags = ["--otlp-endpoint", "http://127.0.0.1:9"]
    with (
        server_process(models, *flags) as server,
        grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        stub = pb_grpc.ClassificationServiceStub(channel)
        for _ in range(20):
            stub.Classify(pb.ClassifyRequest(images=[RED]), timeout=PATIENCE_SECONDS)
        server.terminate()
        assert server.wait() == 0


def test_without_the_extra_the_command_says_what_to_install(models, tmp_path):
    # A package of that name that cannot be imported, in front of the real one.
    (tmp_path / "path" / "opentelemetry").mkdir(parents=True)
    (tmp_path / "path" / "opentelemetry" / "__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")])
    ended = vistazo(
        "serve", "--models", models, "--listen", "127.0.0.1:0", "--metrics-listen", "",
        "--otlp-endpoint", "http://127.0.0.1:4317", env={"PYTHONPATH": path},
    )  # fmt: skip

    assert ended.returncode == 1
    assert re.search(r"--otlp-endpoint needs the Python package \S+: pip install", ended.stderr)


def test_without_an_endpoint_nothing_of_it_is_imported():
    code = (
        "import sys, vistazo_server.server; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

"""Messages that nobody can answer: the caller's mistake, told as such, and the log is not its to fill."""

import json
import threading
import time
from collections import Counter

import grpc
import numpy as np
import pytest
import structlog
from onnx import helper

from support.callers import CHANNEL_OPTIONS
from support.graphs import graph, write_graph
from support.process import server_process
from support.serving import PATIENCE_SECONDS, labels, raw, serving
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import open_inference_pb2 as oip
from vistazo_server.telemetry import logs

RED = raw(plain(200, 10, 10))
SERVICE = "vistazo.v1.ClassificationService"
NO_MESSAGE = b"\x0a\xff\xff\xff\xff\x0f"  # a field longer than what follows


@pytest.mark.parametrize(
    "method", [f"/{SERVICE}/Classify", f"/{SERVICE}/ListModels", "/grpc.health.v1.Health/Check"]
)
async def test_a_request_that_cannot_be_parsed_is_the_callers_mistake(models, method):
    async with serving(models) as server:
        with structlog.testing.capture_logs() as log, pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.channel.unary_unary(method)(NO_MESSAGE, timeout=PATIENCE_SECONDS)
        service, _, name = method[1:].partition("/")
        counted = server.sample(
            "grpc_server_handled_total",
            grpc_type="unary",
            grpc_service=service,
            grpc_method=name,
            grpc_code="INVALID_ARGUMENT",
        )

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "request: expected a message of the method's type, got 6 bytes"
    assert counted == 1
    assert [line["event"] for line in log if line["log_level"] != "debug"] == ["request_failed"]


async def test_so_it_is_where_the_answer_is_a_stream(models):
    async with serving(models) as server:
        call = server.channel.unary_stream("/grpc.health.v1.Health/Watch")(
            NO_MESSAGE, timeout=PATIENCE_SECONDS
        )
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_in_a_stream_it_ends_the_stream_and_no_other(models):
    async with serving(models) as server:
        other = server.stub.ClassifyStream(timeout=PATIENCE_SECONDS)
        good = pb.ClassifyStreamRequest(id="a", request=pb.ClassifyRequest(images=[RED]))
        await other.write(good)
        stream = server.channel.stream_stream(f"/{SERVICE}/ClassifyStream")(timeout=PATIENCE_SECONDS)
        await stream.write(good.SerializeToString())
        await stream.read()
        await stream.write(NO_MESSAGE)
        with structlog.testing.capture_logs() as log, pytest.raises(grpc.aio.AioRpcError) as failed:
            await stream.read()

        assert labels((await other.read()).response.results[0])[0] == "red"
        await other.write(good)
        assert (await other.read()).id == "a"
        other.cancel()

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request_crashed" not in [line["event"] for line in log]


FLOOD_SECONDS = 3.0
CALLERS = 4


def flood(address, method, request):
    """Let some callers send `request` as fast as they can for a while; return how it ended: code → times."""
    endings = [Counter() for _ in range(CALLERS)]
    until = time.monotonic() + FLOOD_SECONDS

    def call(ended):
        with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            ask = channel.unary_unary(method)
            while time.monotonic() < until:
                try:
                    ask(request, timeout=PATIENCE_SECONDS)
                    ended["OK"] += 1
                except grpc.RpcError as error:
                    ended[error.code().name] += 1

    threads = [threading.Thread(target=call, args=[ended]) for ended in endings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(endings, Counter())


def brightest_of_any_size():
    """Return a model of images of any size, which ONNX Runtime fails to run on one without pixels."""
    return graph(
        [helper.make_node("GlobalMaxPool", ["image"], ["most"])],
        {"image": ("FP32", ("batch", 3, "height", "width"))},
        {"most": ("FP32", ("batch", 3, 1, 1))},
    )


def empty_image():
    """Return a request whose image has no pixels, for a model that takes any size."""
    shape = [1, 3, 0, 5]
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=shape)
    return oip.ModelInferRequest(model_name="most", inputs=[tensor], raw_input_contents=[b""])


@pytest.mark.parametrize("kind", ["no message", "no pixels"])
def test_callers_that_fail_as_fast_as_they_can_write_a_bounded_log_that_counts_them(tmp_path, kind):
    write_graph(tmp_path, "most", brightest_of_any_size())
    method, request = {
        "no message": (f"/{SERVICE}/Classify", NO_MESSAGE),
        "no pixels": ("/inference.GRPCInferenceService/ModelInfer", empty_image().SerializeToString()),
    }[kind]
    with server_process(tmp_path) as server:
        before = len(server.log)
        began = time.monotonic()
        endings = flood(server.address, method, request)
        server.terminate()
        status = server.wait()
        seconds = time.monotonic() - began
    lines = server.log[before:]
    written = [line for line in lines if line["event"] == "request_failed"]
    left_out = sum(line.get("suppressed", 0) for line in lines) + sum(
        line.get("suppressed_others", {}).get("request_failed", 0) for line in lines
    )

    assert status == 0
    assert endings.keys() == {"INVALID_ARGUMENT"}
    assert endings.total() > 3 * logs.BURST_LINES
    assert len(written) <= logs.BURST_LINES + logs.LINES_PER_SECOND * seconds + 1
    assert len(written) + left_out == endings.total()
    assert sum(len(json.dumps(line)) for line in lines) < 100_000
    assert not [line for line in lines if "exception" in line]
    assert not server.other_output


def test_requests_on_which_the_engine_fails_write_a_bounded_log_too(tmp_path):
    model = graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": ("FP32", ("batch", "any"))},
        {"y": ("FP32", ("batch", 13, "rest"))},
        shape=np.array([0, 13, -1]),
    )
    write_graph(tmp_path, "by13", model)
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 12])
    request = oip.ModelInferRequest(model_name="by13", inputs=[tensor], raw_input_contents=[bytes(48)])
    with server_process(tmp_path) as server:
        began = time.monotonic()
        endings = flood(
            server.address, "/inference.GRPCInferenceService/ModelInfer", request.SerializeToString()
        )
        server.terminate()
        assert server.wait() == 0
        seconds = time.monotonic() - began
    tracebacks = Counter(line["event"] for line in server.log if "exception" in line)

    assert endings.keys() == {"INTERNAL"}
    assert endings.total() > 3 * logs.BURST_TRACEBACKS
    assert tracebacks
    for count in tracebacks.values():
        assert count <= logs.BURST_TRACEBACKS + logs.TRACEBACKS_PER_SECOND * seconds + 1
    assert sum(len(json.dumps(line)) for line in server.log) < 300_000
    # Nor does ONNX Runtime write a line of its own.
    assert not server.other_output


async def test_sizes_of_zero_are_told_to_the_caller_and_its_batch_mates_know_nothing_of_them(tmp_path):
    write_graph(tmp_path, "most", brightest_of_any_size())
    good = np.full((1, 3, 4, 5), 2, np.float32)
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=good.shape)
    fine = oip.ModelInferRequest(model_name="most", inputs=[tensor], raw_input_contents=[good.tobytes()])
    async with serving(tmp_path, max_batch_size=8) as server:
        ask = server.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        calls = [ask(request, timeout=PATIENCE_SECONDS) for request in (fine, empty_image()) * 20]
        told = []
        for call in calls[1::2]:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            told.append((refused.value.code(), refused.value.details()))
        answers = [await call for call in calls[::2]]
        outcomes = server.outcomes("most")

    message = "input 'image': expected shape [-1, 3, -1, -1], with sizes from 1 up, got [1, 3, 0, 5]"
    assert set(told) == {(grpc.StatusCode.INVALID_ARGUMENT, message)}
    assert {answer.raw_output_contents[0] for answer in answers} == {np.full(3, 2, np.float32).tobytes()}
    assert outcomes == {"ok": 20, "invalid": 20}

"""Requests that are refused leave nothing behind: no caller fills the memory with what is never answered."""

import sys
from contextlib import suppress

import grpc
import pytest

from soak.vitals import look
from support.process import PATIENCE_SECONDS, server_process
from support.serving import encoded
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc

REQUESTS = 60
MEGABYTES = 8
NOISE = bytes(MEGABYTES << 20)
# All of them would take 480 MB. Some are under way, some wait in the allocator.
ALLOWED_MB = 150

NO_IMAGE = pb.ClassifyRequest(images=[encoded(NOISE)])


def bad_image(channel):
    pb_grpc.ClassificationServiceStub(channel).Classify(NO_IMAGE, timeout=PATIENCE_SECONDS)


def one_bad_of_two(channel):
    request = pb.ClassifyRequest(images=[encoded(NOISE[1:]), encoded(b"no image either")])
    pb_grpc.ClassificationServiceStub(channel).Classify(request, timeout=PATIENCE_SECONDS)


def unknown_model(channel):
    request = pb.ClassifyRequest(images=NO_IMAGE.images, model="nobody")
    pb_grpc.ClassificationServiceStub(channel).Classify(request, timeout=PATIENCE_SECONDS)


def not_a_message(channel):
    channel.unary_unary("/vistazo.v1.ClassificationService/Classify")(
        b"\x0a" + NOISE, timeout=PATIENCE_SECONDS
    )


def not_a_message_of_a_stream(channel):
    method = channel.stream_stream("/vistazo.v1.ClassificationService/ClassifyStream")
    list(method(iter([b"\x0a" + NOISE]), timeout=PATIENCE_SECONDS))


def in_a_stream(channel):
    request = pb.ClassifyStreamRequest(id="a", request=NO_IMAGE)
    stub = pb_grpc.ClassificationServiceStub(channel)
    assert next(stub.ClassifyStream(iter([request]), timeout=PATIENCE_SECONDS)).HasField("error")


def cancelled_in_a_stream(channel):
    stream = pb_grpc.ClassificationServiceStub(channel).ClassifyStream(
        iter([pb.ClassifyStreamRequest(id="a", request=NO_IMAGE)] * 2), timeout=PATIENCE_SECONDS
    )
    next(stream)
    stream.cancel()


def bad_tensor(channel):
    request = open_inference_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[NOISE])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, 2, 3])
    open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=PATIENCE_SECONDS)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize(
    "ask",
    [
        bad_image,
        one_bad_of_two,
        unknown_model,
        not_a_message,
        not_a_message_of_a_stream,
        in_a_stream,
        cancelled_in_a_stream,
        bad_tensor,
    ],
)
def test_refused_requests_are_forgotten(models, ask):
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
    with (
        server_process(models) as server,
        grpc.insecure_channel(server.address, options=options) as channel,
    ):

        def send(times: int) -> float:
            for _ in range(times):
                with suppress(grpc.RpcError):
                    ask(channel)
            return look(server.process.pid, 0).memory_mb

        before = send(5)
        after = send(REQUESTS)

    assert after - before < ALLOWED_MB

"""Bytes that are no message of the method's type: the caller's mistake, told as such."""

import grpc
import pytest
import structlog

from support.serving import PATIENCE_SECONDS, labels, raw, serving
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb

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

"""Request ids: in every line that the log has of a request, and in the trailer wherever that is of use."""

import asyncio

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2

from support.process import server_process
from support.serving import PATIENCE_SECONDS, encoded, occupy, raw, serving, until
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc

RED = raw(plain(200, 10, 10))


async def ended(call) -> dict[str, str]:
    """Return the trailers of a call, however it ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return dict(error.trailing_metadata())
    return dict(await call.trailing_metadata())


async def test_the_callers_id_comes_back_with_answers_and_with_errors(models):
    sent = [("x-request-id", "order-66")]
    async with serving(models) as server:
        good = server.stub.Classify(pb.ClassifyRequest(images=[RED]), metadata=sent)
        bad = server.stub.Classify(pb.ClassifyRequest(images=[encoded(b"no")]), metadata=sent)
        unknown = server.stub.GetModel(pb.GetModelRequest(name="nobody"), metadata=sent)
        health = server.health.Check(health_pb2.HealthCheckRequest(), metadata=sent)
        for call in (good, bad, unknown, health):
            assert (await ended(call))["x-request-id"] == "order-66"

        stream = server.stub.ClassifyStream(metadata=sent, timeout=PATIENCE_SECONDS)
        await stream.write(pb.ClassifyStreamRequest(request=pb.ClassifyRequest(images=[RED])))
        await stream.read()
        await stream.done_writing()
        assert dict(await stream.trailing_metadata())["x-request-id"] == "order-66"


async def test_the_refused_get_their_id_beside_the_advice_when_to_retry(slow_models):
    async with serving(slow_models, max_batch_size=1, queue_limit=1) as server:
        busy = await occupy(server, RED)
        busy.append(asyncio.create_task(server.classify(RED)))
        await until(lambda: server.queued() == 1)
        call = server.stub.Classify(pb.ClassifyRequest(images=[RED]), timeout=PATIENCE_SECONDS)
        trailers = await ended(call)
        await asyncio.gather(*busy)

    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert {"x-request-id", "grpc-retry-pushback-ms"} <= set(trailers)


@pytest.mark.parametrize("sent", ["", "two words", "x" * 129])
async def test_without_a_sane_id_each_request_that_the_log_mentions_gets_one(models, sent):
    async with serving(models) as server, serving(models, log_level="debug") as talkative:
        ids = set()
        for _ in range(10):
            failing = server.stub.GetModel(pb.GetModelRequest(name="no"), metadata=[("x-request-id", sent)])
            ids.add((await ended(failing))["x-request-id"])
            call = talkative.stub.ListModels(pb.ListModelsRequest(), metadata=[("x-request-id", sent)])
            ids.add((await ended(call))["x-request-id"])

    assert len(ids) == 20
    assert sent not in ids


async def test_an_answer_that_nothing_mentions_brings_no_id_that_nobody_sent(models):
    async with serving(models) as server:
        trailers = await ended(server.stub.Classify(pb.ClassifyRequest(images=[RED])))

    assert "x-request-id" not in trailers


def test_every_line_of_a_request_has_its_id_and_no_name_of_a_callers_forges_one(models):
    evil = "x\n2026 [info] forged\x1b[31m"
    with (
        server_process(models, "--log-level", "debug") as server,
        grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        stub = pb_grpc.ClassificationServiceStub(channel)
        request = pb.ClassifyRequest(images=[RED], model=evil)
        with pytest.raises(grpc.RpcError) as failed:
            stub.Classify(request, metadata=[("x-request-id", "order-66")], timeout=PATIENCE_SECONDS)
        stub.Classify(pb.ClassifyRequest(images=[RED]), timeout=PATIENCE_SECONDS)
        server.terminate()
        assert server.wait() == 0

    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    lines = [line for line in server.log if line["event"] in ("request", "request_failed")]
    assert [line["event"] for line in lines if line["request_id"] == "order-66"] == [
        "request",
        "request_failed",
    ]
    assert len({line["request_id"] for line in lines}) == 2
    assert [line for line in server.log if line["event"].endswith("ing")]
    assert not [line for line in server.log if line["event"] == "listening" and "request_id" in line]
    # Each line was one JSON object.
    assert server.other_output == []


async def test_a_failure_of_the_engine_is_logged_with_the_ids_of_those_it_hit(models):
    """The engine's failure is logged by the device's own task, which belongs to no request."""

    async def fail(samples):
        samples()
        raise RuntimeError("broken engine")

    async with serving(models) as server:
        lease = server.server.repository.lease("tiny")
        lease.loaded.classifier._batcher._run_batch = fail
        with structlog.testing.capture_logs() as log:
            call = server.stub.Classify(
                pb.ClassifyRequest(images=[RED]), metadata=[("x-request-id", "order-66")]
            )
            await ended(call)

    assert await call.code() is grpc.StatusCode.INTERNAL
    failed = [line for line in log if line["event"] == "request_failed" and "samples" in line]
    assert [line["request_id"] for line in failed] == ["order-66"]

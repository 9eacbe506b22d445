"""Both clients against the real server: errors by their own names, and each image's own deadline."""

import asyncio
import time

import grpc
import pytest

from support.serving import occupy, raw, serving
from support.tiny import plain
from vistazo_client import (
    AsyncClient,
    AuthenticationError,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
)
from vistazo_proto import classification_pb2 as pb

RED = plain(200, 10, 10)


async def test_a_bad_image_and_a_bad_request_are_told_apart(models):
    async with serving(models) as server, AsyncClient(server.address) as client:
        with pytest.raises(InvalidImageError):
            await client.classify(b"no image")
        with pytest.raises(InvalidRequestError) as failure:
            await client.classify(RED, top_k=1000)
        assert type(failure.value) is InvalidRequestError
        results = await client.classify([b"no image"])
        assert type(results[0].error) is InvalidImageError
        with pytest.raises(InvalidRequestError, match="top_k"):
            await client.classify([RED], top_k=1000)
        pairs = [("bad", b"no image"), ("good", RED)]
        streamed = {name: result async for name, result in client.classify_stream(pairs)}
        assert type(streamed["bad"].error) is InvalidImageError
        assert streamed["good"].top.label == "red"
        wrong = [result async for _, result in client.classify_stream([(1, RED)], top_k=1000)]
        assert type(wrong[0].error) is InvalidRequestError


async def test_one_request_of_a_stream_has_a_deadline_of_its_own(slow_models):
    async with serving(slow_models, max_batch_size=1) as server:
        busy = await occupy(server, raw(RED))
        request = pb.ClassifyRequest(images=[raw(RED)])
        call = server.stub.ClassifyStream(
            iter(
                [
                    pb.ClassifyStreamRequest(id="patient", request=request),
                    pb.ClassifyStreamRequest(id="hurried", request=request, timeout_ms=1),
                ]
            ),
            timeout=30,
        )
        outcomes = {answer.id: answer async for answer in call}
        await asyncio.gather(*busy)

    assert outcomes["patient"].WhichOneof("outcome") == "response"
    refused = {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], grpc.StatusCode.DEADLINE_EXCEEDED.value[0]}
    assert outcomes["hurried"].error.code in refused


async def test_a_stream_that_is_too_much_says_so_image_by_image(slow_models):
    async with serving(slow_models, max_batch_size=1) as server, AsyncClient(server.address) as client:
        # However busy the machine is: time for some of them, and not for all.
        began = time.monotonic()
        await client.classify(RED)
        enough_for_some = max(1.0, 5 * (time.monotonic() - began))
        pairs = ((number, RED) for number in range(30))
        results = [result async for _, result in client.classify_stream(pairs, timeout=enough_for_some)]

    assert len(results) == 30
    assert any(result.error is None for result in results)
    failures = [result.error for result in results if result.error is not None]
    assert failures
    assert all(isinstance(failure, OverloadedError | DeadlineExceededError) for failure in failures)


async def test_a_server_with_tokens_asks_for_one(models, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(
        "reader inference s3cret-token-of-a-reader\noperator model-control s3cret-of-an-operator\n"
    )
    async with serving(models, tokens=tokens) as server:
        for token, kind in (
            ("", AuthenticationError),
            ("wrong", AuthenticationError),
            ("s3cret-of-an-operator", PermissionDeniedError),
        ):
            async with AsyncClient(server.address, token=token) as client:
                with pytest.raises(kind):
                    await client.classify(RED)
                with pytest.raises(kind):
                    assert [pair async for pair in client.classify_stream([(1, RED)])]
        (tmp_path / "token").write_text("s3cret-token-of-a-reader\n")
        async with AsyncClient(server.address, token_file=tmp_path / "token") as client:
            assert (await client.classify(RED)).top.label == "red"
            assert [result.top.label async for _, result in client.classify_stream([(1, RED)])] == ["red"]

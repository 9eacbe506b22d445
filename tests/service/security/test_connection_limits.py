"""What one client, or many, may take of the server's connections, and which of them it ends."""

import asyncio

import grpc
import pytest

from support.serving import PATIENCE_SECONDS, labels, open_channel, raw, serving, until
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_server.rpc import listener

RED = raw(plain(200, 10, 10))
NO_MODELS = pb.ListModelsRequest()

# What an HTTP/2 client says first (RFC 9113, section 3.4), with empty settings.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

SETTINGS_ACKNOWLEDGED = b"\0\0\0\4\1\0\0\0\0"


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    """Return what the server sends until it ends the connection; fails when it does not."""
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
    except ConnectionResetError:
        return b""


async def test_connections_over_the_limit_are_closed_as_they_come_and_the_others_go_on(models):
    async with serving(models, max_connections=3) as server:
        await server.classify(RED)  # the first
        raw_ones = [await asyncio.open_connection("127.0.0.1", server.server.port) for _ in range(5)]
        endings = [asyncio.create_task(read_to_the_end(reader)) for reader, _ in raw_ones]
        await until(lambda: sum(ending.done() for ending in endings) == 3, what="three were closed")

        assert labels((await server.classify(RED)).results[0])[0] == "red"
        assert sum(ending.done() for ending in endings) == 3
        for _, writer in raw_ones:
            writer.close()
        # There is room again.
        async with open_channel(server.server.port) as channel:
            stub = pb_grpc.ClassificationServiceStub(channel)
            await stub.ListModels(NO_MODELS, timeout=PATIENCE_SECONDS, wait_for_ready=True)
        await asyncio.gather(*endings, return_exceptions=True)


async def test_rpcs_over_the_limit_of_a_connection_wait_for_room(models):
    async with serving(models, max_streams_per_connection=2) as server:
        streams = [server.stub.ClassifyStream(timeout=PATIENCE_SECONDS) for _ in range(2)]
        for stream in streams:
            await stream.write(pb.ClassifyStreamRequest(request=pb.ClassifyRequest(images=[RED])))
            await stream.read()
        third = asyncio.create_task(server.classify(RED))
        async with open_channel(server.server.port) as another:
            for _ in range(3):
                await pb_grpc.ClassificationServiceStub(another).ListModels(NO_MODELS)

        assert not third.done()
        streams[0].cancel()
        assert labels((await third).results[0])[0] == "red"
        streams[1].cancel()


@pytest.mark.parametrize("characters", [10_000, 20_000, 200_000])
async def test_metadata_over_the_limit_is_refused_and_less_is_not(models, characters):
    async with serving(models) as server:
        call = server.stub.ListModels(NO_MODELS, metadata=[("note", "x" * characters)])
        if characters < listener.MAX_METADATA_BYTES:
            assert await call
        else:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
            assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "metadata size" in failed.value.details()
        assert await server.health_of() == "SERVING"


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_that_does_not_come_to_the_point_is_ended(models, monkeypatch, sent):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 1)
    async with serving(models) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.server.port)
        writer.write(sent)
        await read_to_the_end(reader)
        writer.close()

        assert await server.health_of() == "SERVING"


async def test_a_connection_that_gives_no_sign_of_life_is_ended(models, monkeypatch):
    monkeypatch.setattr(listener, "KEEPALIVE_SECONDS", 1)
    monkeypatch.setattr(listener, "KEEPALIVE_TIMEOUT_SECONDS", 1)
    async with serving(models) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.server.port)
        writer.write(PREFACE + SETTINGS_ACKNOWLEDGED)
        # Pings come, and nobody answers them.
        assert b"ping_timeout" in await read_to_the_end(reader)
        writer.close()

        assert await server.health_of() == "SERVING"


async def test_connections_are_drained_when_they_are_old_and_no_request_fails(models):
    answered, connected = 0, 0
    ended = asyncio.Event()

    async with serving(models, max_connection_age_seconds=0.3) as server:

        async def call() -> None:
            nonlocal answered
            while not ended.is_set():
                assert labels((await server.classify(RED)).results[0])[0] == "red"
                answered += 1

        async def watch() -> None:
            nonlocal connected
            state = server.channel.get_state()
            while connected < 5:
                await server.channel.wait_for_state_change(state)
                state = server.channel.get_state()
                connected += state is grpc.ChannelConnectivity.READY
            ended.set()

        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch())
            for _ in range(4):
                tasks.create_task(call())

    assert answered > 20


async def test_a_stream_that_never_ends_is_cut_after_the_age_and_its_grace(models):
    settings = {"max_connection_age_seconds": 0.2, "max_connection_age_grace_seconds": 0.2}
    async with serving(models, **settings) as server:
        # No deadline, and nothing more to say.
        stream = server.stub.ClassifyStream()
        await stream.write(pb.ClassifyStreamRequest(request=pb.ClassifyRequest(images=[RED])))
        assert labels((await stream.read()).response.results[0])[0] == "red"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await asyncio.wait_for(stream.read(), PATIENCE_SECONDS)

        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert labels((await server.classify(RED)).results[0])[0] == "red"

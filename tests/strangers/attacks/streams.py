"""Streams: many, idle, half-written, never read, taken back."""

import asyncio
import struct

import grpc.aio

from soak.strangers import ACK, DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, answer_pings, frame, headers
from strangers.field import CONNECTED, LOAD, Field, attack
from strangers.models import CLASSES
from support.serving import raw
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb

IMAGE = raw(plain(200, 10, 30))
STREAM = "/vistazo.v1.ClassificationService/ClassifyStream"


def item(number: int, **fields) -> pb.ClassifyStreamRequest:
    """Return one request of a stream."""
    request = pb.ClassifyRequest(images=[IMAGE], **({"model": "tiny"} | fields))
    return pb.ClassifyStreamRequest(id=str(number), request=request)


@attack(beside="stream", expected=LOAD, entitled="Its share of each batch.")
async def many_busy_streams(field: Field) -> None:
    """A hundred streams, a request at a time on each."""
    stubs = [field.classification() for _ in range(4)]

    async def talk(stub) -> None:
        stream = stub.ClassifyStream(metadata=field.metadata)
        for number in field.numbers():
            await stream.write(item(number))
            answer = await stream.read()
            field.endings["OK" if answer.HasField("response") else "RESOURCE_EXHAUSTED"] += 1
            await asyncio.sleep(0.05)

    await field.begin()
    await field.until_the_end(talk(stub) for stub in stubs * 25)


@attack(beside="stream", expected=LOAD, entitled="Its share of each batch.")
async def one_stream_that_never_stops(field: Field) -> None:
    """Requests on one stream as fast as they are taken."""
    stub = field.classification()

    async def write(stream) -> None:
        for number in field.numbers():
            await stream.write(item(number))
            # To be met, not to show how fast this process can be.
            await asyncio.sleep(0.001)

    async def read(stream) -> None:
        while (answer := await stream.read()) is not grpc.aio.EOF:
            field.endings["OK" if answer.HasField("response") else "RESOURCE_EXHAUSTED"] += 1

    stream = stub.ClassifyStream(metadata=field.metadata)
    await field.begin()
    await field.until_the_end([write(stream), read(stream)])


@attack(beside="stream", expected=LOAD, entitled="Nothing: it asks nothing.")
async def idle_streams(field: Field) -> None:
    """Four hundred streams that ask once and then are silent."""
    stubs = [field.classification() for _ in range(4)]

    async def ask_once(stub) -> None:
        stream = stub.ClassifyStream(metadata=field.metadata)
        await stream.write(item(0))
        answer = await stream.read()
        field.endings["OK" if answer.HasField("response") else "RESOURCE_EXHAUSTED"] += 1
        await field.ended.wait()

    await field.begin()
    await field.until_the_end(ask_once(stub) for stub in stubs * 100)


@attack(beside="stream", expected=LOAD, entitled="What is answered until its sender is slowed down.")
async def streams_that_are_never_read(field: Field) -> None:
    """Streams that ask for large answers without end, and read none of them."""
    stubs = [field.classification() for _ in range(4)]

    async def write_only(stub) -> None:
        stream = stub.ClassifyStream(metadata=field.metadata)
        for number in field.numbers():
            await stream.write(item(number, model="wide", top_k=CLASSES))
            field.endings["OK"] += 1
            await asyncio.sleep(0.005)

    await field.begin()
    await field.until_the_end(write_only(stub) for stub in stubs * 2)


@attack(beside="stream", expected=CONNECTED, entitled="Nothing: no request of it is whole.")
async def half_written_streams(field: Field) -> None:
    """Five connections with a hundred streams each, that begin a message and do not end it."""
    half = struct.pack(">BI", 0, 1 << 20) + b"half"
    streams = b"".join(
        frame(HEADERS, headers(field.token, STREAM), flags=END_HEADERS, stream=number)
        + frame(DATA, half, stream=number)
        for number in range(1, 201, 2)
    )
    await field.begin()

    async def begin_only() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", field.port)
        try:
            field.endings["connected"] += 1
            writer.write(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK) + streams)
            await answer_pings(reader, writer)
        finally:
            writer.close()

    await field.until_the_end(begin_only() for _ in range(5))


@attack(beside="stream", expected=LOAD, entitled="What it has begun, until it takes it back.")
async def streams_that_are_taken_back(field: Field) -> None:
    """Streams with requests under way for every model, cancelled at random moments."""
    stubs = [field.classification() for _ in range(2)]

    async def take_back(stub) -> None:
        for _ in field.numbers():
            stream = stub.ClassifyStream(metadata=field.metadata)
            for number in range(field.chance.randint(1, 20)):
                await stream.write(item(number, model=field.chance.choice(("tiny", "wide", "slow"))))
            await asyncio.sleep(field.chance.uniform(0, 0.05))
            stream.cancel()
            field.endings["CANCELLED"] += 1
            await asyncio.sleep(0.005)

    await field.begin()
    await field.until_the_end(take_back(stub) for stub in stubs * 4)

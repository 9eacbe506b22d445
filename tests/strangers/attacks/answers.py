"""Answers that are large, many of a kind that costs, or never read."""

import asyncio
import functools
import itertools
import struct

from soak.strangers import ACK, DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, frame, headers
from strangers.field import CONNECTED, LOAD, Field, attack
from strangers.models import CLASSES
from support.serving import raw
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import open_inference_pb2

IMAGE = raw(plain(200, 10, 30))
END_STREAM = 1
WINDOW_UPDATE = 8
INITIAL_WINDOW_SIZE = 4
LARGEST_WINDOW = (1 << 31) - 1


@attack(beside="pixels", expected=LOAD, entitled="Its own answers' encoding, in pieces.")
async def different_top_k(field: Field) -> None:
    """Images of a model with ten thousand classes, each asking for another number of them."""
    stubs = [field.classification() for _ in range(8)]
    numbers = itertools.cycle(field.chance.sample(range(1, CLASSES + 1), 2000))
    callers = [
        lambda stub=stub: field.classify(stub, IMAGE, model="wide", top_k=next(numbers)) for stub in stubs
    ]
    await field.begin()
    await field.crowd(callers)


@attack(beside="pixels", expected=LOAD, entitled="Its own answers' encoding, in pieces.")
async def large_top_k(field: Field) -> None:
    """Requests of 64 images, each answered with ten thousand classes: 16 MB an answer."""
    stub = field.classification()
    call = functools.partial(field.classify, stub, *[IMAGE] * 64, model="wide", top_k=CLASSES)
    await field.begin()
    await field.crowd([call])


@attack(
    beside="pixels", expected=LOAD | {"INVALID_ARGUMENT"}, entitled="Its own answers' encoding, in pieces."
)
async def answers_larger_than_a_message(field: Field) -> None:
    """Requests of 256 images, whose ten thousand classes each are more than a message may have."""
    stub = field.classification()
    call = functools.partial(field.classify, stub, *[IMAGE] * 256, model="wide", top_k=CLASSES)
    await field.begin()
    await field.crowd([call])


@attack(beside="pixels", expected=LOAD, entitled="Its own answers' encoding, in pieces.")
async def classifications_of_everything(field: Field) -> None:
    """The Open Inference Protocol's classification, with all of ten thousand classes of 16 samples."""
    request = open_inference_pb2.ModelInferRequest(model_name="wide")
    request.inputs.add(name="images", datatype="UINT8", shape=[16, *plain(0, 0, 0).shape])
    request.raw_input_contents.append(plain(200, 10, 30).tobytes() * 16)
    request.outputs.add(name="logits").parameters["classification"].int64_param = CLASSES
    stubs = [field.open_inference() for _ in range(2)]
    await field.begin()
    await field.crowd([functools.partial(field.infer, stub, request) for stub in stubs])


@attack(beside="pixels", expected=CONNECTED, entitled="The memory of some answers on each connection.")
async def large_answers_that_are_never_read(field: Field) -> None:
    """Connections that ask for some megabytes of answers and do not read a byte."""
    request = pb.ClassifyRequest(model="wide", images=[IMAGE], top_k=CLASSES).SerializeToString()
    window = frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW))
    wider = frame(WINDOW_UPDATE, struct.pack(">I", LARGEST_WINDOW - 65_535))
    calls = b"".join(
        frame(HEADERS, headers(field.token), flags=END_HEADERS, stream=number)
        + frame(DATA, struct.pack(">BI", 0, len(request)) + request, flags=END_STREAM, stream=number)
        for number in range(1, 21, 2)
    )
    await field.begin()

    async def never_read() -> None:
        # With a limit of 1 byte the reader stops reading from the socket after its first bytes.
        reader, writer = await asyncio.open_connection("127.0.0.1", field.port, limit=1)
        try:
            field.endings["connected"] += 1
            writer.write(PREFACE + window + wider + frame(SETTINGS, flags=ACK) + calls)
            await writer.drain()
            await field.ended.wait()
            assert not reader.at_eof()
        finally:
            writer.close()

    await field.until_the_end(never_read() for _ in range(10))

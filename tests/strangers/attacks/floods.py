"""Floods: of requests that can be answered, that cannot be in time, that may not be, and of questions."""

import asyncio
import functools
import itertools

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from strangers.field import CONNECTED, LOAD, REFUSED, Field, attack
from support.images import file
from support.serving import encoded, open_channel, raw
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2

IMAGE = raw(plain(200, 10, 30))
SERVICE = "/vistazo.v1.ClassificationService"
NOTHING = "Nothing but to be told so."
BACKLOG_DEADLINE_SECONDS = 2.0
"""Of who asks the small model beside the backlog of a slow one: far above a run, far below the backlog."""


def crowd(field: Field, *, connections: int, each: int, **options):
    """Return callers of one image, so many on each connection."""
    stubs = [field.classification() for _ in range(connections)]
    return [functools.partial(field.classify, stub, IMAGE, **options) for stub in stubs * each]


@attack(beside="pixels", expected=LOAD, entitled="Its places in the queue, and its share of each batch.")
async def flood_without_deadlines(field: Field) -> None:
    """A hundred requests at a time for the good caller's own model."""
    callers = crowd(field, connections=4, each=25, deadline=None)
    await field.begin()
    await field.crowd(callers, pause=0.05)


@attack(beside="pixels", expected=LOAD, entitled="To be refused: none of it can be answered in time.")
async def flood_with_hopeless_deadlines(field: Field) -> None:
    """Requests of a slow model with a millisecond, or a few, each."""
    stubs = [field.classification() for _ in range(4)]
    deadlines = itertools.cycle((0.001, 0.002, 0.005, 0.02))
    callers = [
        lambda stub=stub: field.classify(stub, IMAGE, model="slow", deadline=next(deadlines))
        for stub in stubs * 8
    ]
    await field.begin()
    await field.crowd(callers, pause=0.02)


@attack(
    beside="pixels",
    expected=LOAD,
    entitled="One run at a time in turn with the others'.",
    deadline=BACKLOG_DEADLINE_SECONDS,
)
async def backlog_of_another_model_in_one_request(field: Field) -> None:
    """200 images for a slow model in one request without a deadline: eight seconds of work."""
    stub = field.classification()
    call = functools.partial(field.classify, stub, *[IMAGE] * 200, model="slow", deadline=None)
    await field.begin()
    await field.crowd([call])


@attack(
    beside="pixels",
    expected=LOAD,
    entitled="One run at a time in turn with the others'.",
    deadline=BACKLOG_DEADLINE_SECONDS,
)
async def backlog_of_another_model_in_many_requests(field: Field) -> None:
    """A slow model's queue kept full by requests without deadlines."""
    callers = crowd(field, connections=4, each=50, model="slow", deadline=None)
    await field.begin()
    await field.crowd(callers, pause=0.2)


@attack(
    beside="photo",
    expected=LOAD,
    entitled="One run at a time in turn with the others'.",
    deadline=BACKLOG_DEADLINE_SECONDS,
)
async def backlog_of_another_model_in_files(field: Field) -> None:
    """200 small files for a slow model in one request, without a deadline, beside one who sends files."""
    stub = field.classification()
    images = [encoded(file(plain(200, 10, 30, height=64, width=64)))] * 200
    call = functools.partial(field.classify, stub, *images, model="slow", deadline=None)
    await field.begin()
    await field.crowd([call])


@attack(beside="pixels", expected=REFUSED, entitled=NOTHING)
async def bad_tokens(field: Field) -> None:
    """Tokens that are none, and things that this token does not allow, such as to unload a model."""
    stub, control, channel = field.classification(), field.open_inference(), field.channel()
    tokens = ["Bearer x", "Bearer ", "Basic eDp5", "Bearer " + "y" * 5000, f"bearer{field.token}"]
    nothing = [
        functools.partial(
            stub.Classify,
            pb.ClassifyRequest(images=[IMAGE], model="tiny"),
            metadata=(("authorization", token),),
            timeout=5,
        )
        for token in tokens
    ]
    unload = open_inference_pb2.RepositoryModelUnloadRequest(model_name="tiny")
    forbidden = [
        functools.partial(control.RepositoryModelUnload, unload, metadata=field.metadata, timeout=5),
        functools.partial(channel.unary_unary(f"{SERVICE}/Nothing"), b"", timeout=5),
    ]
    await field.begin()
    await field.crowd(nothing * 2 + forbidden)


@attack(beside="pixels", expected=REFUSED, entitled=NOTHING)
async def unknown_models(field: Field) -> None:
    """Names, versions and methods that nobody has, some of them five thousand characters long."""
    stub, channel = field.classification(), field.channel()

    def unknown():
        name = "".join(field.chance.choices("ab\n\x1b/.%é", k=field.chance.choice((1, 10, 5000))))
        kind = field.chance.randrange(4)
        if kind == 0:
            return field.classify(stub, IMAGE, model=name)
        if kind == 1:
            return field.classify(stub, IMAGE, version=name)
        if kind == 2:
            return stub.GetModel(pb.GetModelRequest(name=name), metadata=field.metadata, timeout=5)
        method = f"{SERVICE}/{field.chance.randbytes(4).hex()}"
        return channel.unary_unary(method)(b"", metadata=field.metadata, timeout=5)

    await field.begin()
    await field.crowd([unknown] * 8)


@attack(beside="pixels", expected=frozenset({"INVALID_ARGUMENT"}), entitled=NOTHING)
async def bytes_that_are_no_message(field: Field) -> None:
    """Random bytes in place of messages, on every method that takes images or tensors."""
    channel = field.channel()
    methods = [f"{SERVICE}/Classify", "/inference.GRPCInferenceService/ModelInfer"]
    calls = [channel.unary_unary(method) for method in methods]
    # A field of number 0 is none, whatever follows.
    callers = [
        lambda call=call: call(
            b"\0" + field.chance.randbytes(field.chance.choice((0, 9, 999, 99_999))),
            metadata=field.metadata,
            timeout=5,
        )
        for call in calls * 4
    ]
    await field.begin()
    await field.crowd(callers)


@attack(beside="pixels", expected=REFUSED | {"RESOURCE_EXHAUSTED"}, entitled=NOTHING)
async def messages_that_unpack_beyond_the_limit(field: Field) -> None:
    """Messages of some hundred kilobytes, which gzip made of 60 and of 100 MB of zeros."""
    call = field.channel().unary_unary(f"{SERVICE}/Classify")
    sizes = (60 << 20, 100 << 20)
    bodies = [
        pb.ClassifyRequest(model="tiny", images=[encoded(bytes(size))]).SerializeToString() for size in sizes
    ]
    turns = itertools.cycle(bodies)

    def bomb():
        return call(next(turns), metadata=field.metadata, timeout=5, compression=grpc.Compression.Gzip)

    await field.begin()
    await field.crowd([bomb], pause=0.1)


@attack(beside="pixels", expected=LOAD | REFUSED, entitled=NOTHING)
async def much_metadata(field: Field) -> None:
    """Calls with more metadata than a call may have, and with just as much as it may."""
    stub = field.classification()
    request = pb.ClassifyRequest(model="tiny", images=[IMAGE])
    sizes = itertools.cycle((100, 7000, 17_000, 200_000))

    def call():
        metadata = (*field.metadata, ("note", "x" * next(sizes)))
        return stub.Classify(request, metadata=metadata, timeout=5)

    await field.begin()
    await field.crowd([call] * 4)


@attack(beside="pixels", expected=LOAD | REFUSED, entitled="Its questions in turn with everybody's.")
async def questions_without_end(field: Field) -> None:
    """Lists of models with ten thousand labels, statistics, indexes, health and reflection, all the time."""
    channel = field.channel()
    stub, info = field.classification(), field.open_inference()
    health = health_pb2_grpc.HealthStub(channel)
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    options = {"metadata": field.metadata, "timeout": 5}

    async def reflect():
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE[1:])
        async for _ in reflection.ServerReflectionInfo(iter([request]), **options):
            pass

    questions = [
        functools.partial(stub.ListModels, pb.ListModelsRequest(), **options),
        functools.partial(stub.GetModel, pb.GetModelRequest(name="wide"), **options),
        functools.partial(info.ModelStatistics, open_inference_pb2.ModelStatisticsRequest(), **options),
        functools.partial(info.RepositoryIndex, open_inference_pb2.RepositoryIndexRequest(), **options),
        functools.partial(info.ModelConfig, open_inference_pb2.ModelConfigRequest(name="wide"), **options),
        functools.partial(health.Check, health_pb2.HealthCheckRequest(service="tiny"), timeout=5),
        reflect,
    ]
    await field.begin()
    await field.crowd(questions)


@attack(beside="pixels", expected=LOAD, entitled="What it has begun, until it takes it back.")
async def cancellations_at_random_moments(field: Field) -> None:
    """Requests of every kind, taken back between at once and 50 ms later."""
    stubs = [field.classification() for _ in range(2)]
    png = encoded(file(plain(200, 10, 30, height=1000, width=1000)))
    kinds = [("tiny", [IMAGE]), ("tiny", [IMAGE] * 50), ("slow", [IMAGE] * 3), ("tiny", [png] * 3)]

    def call():
        model, images = field.chance.choice(kinds)
        begun = field.classify(field.chance.choice(stubs), *images, model=model)
        asyncio.get_running_loop().call_later(field.chance.uniform(0, 0.05), begun.cancel)
        return begun

    await field.begin()
    await field.crowd([call] * 16)


@attack(beside="pixels", expected=CONNECTED, entitled="What it has begun, until it hangs up.")
async def callers_that_hang_up(field: Field) -> None:
    """Connections that are closed with thirty requests under way, again and again."""
    await field.begin()

    async def hang_up() -> None:
        for _ in field.numbers():
            async with open_channel(field.port) as channel:
                stub = pb_grpc.ClassificationServiceStub(channel)
                for model in ("tiny", "wide", "slow") * 10:
                    field.classify(stub, *[IMAGE] * 3, model=model)
                await asyncio.sleep(field.chance.uniform(0, 0.1))
            field.endings["connected"] += 1

    await field.until_the_end([hang_up()])

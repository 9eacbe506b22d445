"""Callers that speak gRPC: good ones, whose every answer is checked, and bad, huge and cancelled ones."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np

from support.images import file, png_claiming
from support.serving import encoded, labels, open_channel, raw
from support.tiny import LABELS, plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc

SERVICE = "/vistazo.v1.ClassificationService"
COLOURS = {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}
DEADLINE_SECONDS = 30.0
# A good request must be answered; a refusal for load would be one that was not.
PAUSE_SECONDS = (0.005, 0.05)
MOST_FAILURES_KEPT = 20


@dataclass
class Tally:
    """What happened to whom."""

    answered: int = 0
    """Good requests with the right answer."""
    failed: list[str] = field(default_factory=list)
    """Good requests without; should stay empty."""
    codes: Counter[str] = field(default_factory=Counter)
    """How the others ended: kind and status → times."""
    unexpected: Counter[str] = field(default_factory=Counter)
    """The others' endings that no caller should cause, such as INTERNAL."""

    def fail(self, what: str) -> None:
        if len(self.failed) < MOST_FAILURES_KEPT:
            self.failed.append(what)


@dataclass(frozen=True)
class Target:
    """The server and how to get in."""

    port: int
    token: str
    message_bytes: int
    """Its largest message."""

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")]

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[pb_grpc.ClassificationServiceStub]:
        async with open_channel(self.port) as channel:
            yield pb_grpc.ClassificationServiceStub(channel)


# Good


def image(colour: str, chance: random.Random) -> pb.Image:
    pixels = plain(*COLOURS[colour])
    return raw(pixels) if chance.random() < 0.5 else encoded(file(pixels))


async def good(target: Target, tally: Tally, chance: random.Random) -> None:
    """Ask and check, on one connection for a while, then on another."""
    async with target.stub() as stub:
        for _ in range(chance.randint(50, 500)):
            colours = chance.choices(LABELS, k=chance.choice((1, 1, 1, 5)))
            request = pb.ClassifyRequest(images=[image(colour, chance) for colour in colours])
            try:
                response = await stub.Classify(request, timeout=DEADLINE_SECONDS, metadata=target.metadata)
            except grpc.aio.AioRpcError as error:
                tally.fail(f"Classify: {error.code().name}: {error.details()}")
            else:
                check(response, colours, tally)
            await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))


async def good_stream(target: Target, tally: Tally, chance: random.Random) -> None:
    """Ask and check in streams of a few seconds."""
    async with target.stub() as stub:
        for _ in range(5):
            stream = stub.ClassifyStream(timeout=2 * DEADLINE_SECONDS, metadata=target.metadata)
            try:
                for number in range(chance.randint(10, 100)):
                    colour = chance.choice(LABELS)
                    request = pb.ClassifyRequest(images=[image(colour, chance)])
                    await stream.write(pb.ClassifyStreamRequest(id=str(number), request=request))
                    answer = await stream.read()
                    if answer.id != str(number) or not answer.HasField("response"):
                        tally.fail(f"ClassifyStream: expected an answer to {number}, got {answer}")
                        continue
                    check(answer.response, [colour], tally)
                    await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))
                await stream.done_writing()
                if await stream.code() is not grpc.StatusCode.OK:
                    tally.fail(f"ClassifyStream ended with {await stream.code()}")
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                tally.fail(f"ClassifyStream: {error}")
                return


async def good_open_inference(target: Target, tally: Tally, chance: random.Random) -> None:
    """Ask for the scores of pixels over the Open Inference Protocol, and check them."""
    async with open_channel(target.port) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(chance.randint(50, 500)):
            colour = chance.choice(LABELS)
            request = open_inference_pb2.ModelInferRequest(model_name="tiny")
            request.inputs.add(name="images", datatype="UINT8", shape=[1, *plain(0, 0, 0).shape])
            request.raw_input_contents.append(plain(*COLOURS[colour]).tobytes())
            try:
                response = await stub.ModelInfer(request, timeout=DEADLINE_SECONDS, metadata=target.metadata)
            except grpc.aio.AioRpcError as error:
                tally.fail(f"ModelInfer: {error.code().name}: {error.details()}")
            else:
                scores = np.frombuffer(response.raw_output_contents[0], np.float32)
                if LABELS[scores.argmax()] == colour:
                    tally.answered += 1
                else:
                    tally.fail(f"ModelInfer: asked {colour}, got {scores}")
            await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))


def check(response: pb.ClassifyResponse, colours: list[str], tally: Tally) -> None:
    got = [labels(result)[0] for result in response.results]
    if got == colours:
        tally.answered += 1
    else:
        tally.fail(f"asked {colours}, got {got}")


# Bad


async def bad(target: Target, tally: Tally, chance: random.Random) -> None:
    """Send what makes no sense, each time something else."""
    async with target.stub() as stub, open_channel(target.port) as channel:
        for _ in range(50):
            kind, call = chance.choice(NONSENSE)
            await ended(kind, call(target, stub, channel, chance), tally, expected=REFUSED)
            await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))


REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}


def classify(target: Target, stub, request: pb.ClassifyRequest, **options):
    return stub.Classify(request, **({"timeout": DEADLINE_SECONDS, "metadata": target.metadata} | options))


def no_image(target, stub, channel, chance):
    nothing = encoded(chance.randbytes(chance.randint(0, 999)))
    return classify(target, stub, pb.ClassifyRequest(images=[nothing]))


def damaged_image(target, stub, channel, chance):
    data = file(plain(200, 10, 10, height=64, width=64))
    half = encoded(data[: chance.randint(1, len(data) // 2)])
    return classify(target, stub, pb.ClassifyRequest(images=[half]))


def lying_pixels(target, stub, channel, chance):
    pixels = pb.RawPixels(data=b"abc", height=chance.randint(2, 1 << 31), width=2, channels=3)
    return classify(target, stub, pb.ClassifyRequest(images=[pb.Image(raw=pixels)]))


def unknown_model(target, stub, channel, chance):
    name = "".join(chance.choices("ab\n\x1b/.%", k=chance.randint(1, 5000)))
    return classify(target, stub, pb.ClassifyRequest(images=[raw(plain(1, 2, 3))], model=name))


def wrong_top_k(target, stub, channel, chance):
    request = pb.ClassifyRequest(images=[raw(plain(1, 2, 3))], top_k=chance.randint(4, 9))
    return classify(target, stub, request)


def wrong_token(target, stub, channel, chance):
    metadata = [("authorization", f"Bearer {chance.randbytes(16).hex()}")]
    return classify(target, stub, pb.ClassifyRequest(images=[raw(plain(1, 2, 3))]), metadata=metadata)


def unknown_method(target, stub, channel, chance):
    method = f"{SERVICE}/{chance.randbytes(4).hex()}"
    return channel.unary_unary(method)(b"", timeout=DEADLINE_SECONDS, metadata=target.metadata)


def much_metadata(target, stub, channel, chance):
    metadata = [*target.metadata, ("note", "x" * chance.choice((17_000, 60_000, 200_000)))]
    return classify(target, stub, pb.ClassifyRequest(images=[raw(plain(1, 2, 3))]), metadata=metadata)


NONSENSE = [
    (make.__name__, make)
    for make in (
        *(no_image, damaged_image, lying_pixels, unknown_model, wrong_top_k, wrong_token, unknown_method),
        much_metadata,
    )
]


async def not_protobuf(target: Target, tally: Tally, chance: random.Random) -> None:
    """Send bytes that are no message."""
    async with open_channel(target.port) as channel:
        call = channel.unary_unary(f"{SERVICE}/Classify")
        for _ in range(20):
            data = chance.randbytes(chance.randint(1, 999))
            sent = call(data, timeout=DEADLINE_SECONDS, metadata=target.metadata)
            await ended("not_protobuf", sent, tally, expected={"INVALID_ARGUMENT"})
            await asyncio.sleep(chance.uniform(*PAUSE_SECONDS))


# Huge


async def huge(target: Target, tally: Tally, chance: random.Random) -> None:
    """Send messages over the limit and just below it, and images that claim to be enormous."""
    async with target.stub() as stub:
        over = encoded(bytes(chance.randint(target.message_bytes, 2 * target.message_bytes)))
        below = encoded(bytes(target.message_bytes - 1000))
        bomb = encoded(png_claiming(chance.randint(10_000, 1 << 30), 100_000))
        many = [raw(plain(1, 2, 3))] * 2000
        for kind, images in (("over", [over]), ("below", [below]), ("bomb", [bomb]), ("many", many)):
            request = pb.ClassifyRequest(images=images)
            await ended(f"huge_{kind}", classify(target, stub, request), tally, expected=REFUSED)
            await asyncio.sleep(chance.uniform(0.1, 0.5))


# Cancelled


async def cancelled(target: Target, tally: Tally, chance: random.Random) -> None:
    """Ask and go away: before the answer, in the middle of a stream, with a deadline that cannot be kept."""
    async with target.stub() as stub:
        for _ in range(50):
            request = pb.ClassifyRequest(images=[image("red", chance)] * chance.randint(1, 20))
            call = classify(target, stub, request, timeout=chance.choice((DEADLINE_SECONDS, 0.0005, 0.002)))
            asyncio.get_running_loop().call_later(chance.uniform(0, 0.005), call.cancel)
            gone = {"CANCELLED", "OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
            await ended("cancelled", call, tally, expected=gone)
        stream = stub.ClassifyStream(metadata=target.metadata)
        for number in range(chance.randint(1, 20)):
            request = pb.ClassifyRequest(images=[image("red", chance)])
            await stream.write(pb.ClassifyStreamRequest(id=str(number), request=request))
        stream.cancel()
        tally.codes["cancelled_stream CANCELLED"] += 1


async def ended(kind: str, call: Awaitable[object], tally: Tally, *, expected: set[str]) -> None:
    """Count how a call ends."""
    try:
        await call
        code = "OK"
    except grpc.aio.AioRpcError as error:
        code = error.code().name
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        code = "CANCELLED"
    tally.codes[f"{kind} {code}"] += 1
    if code not in expected:
        tally.unexpected[f"{kind} {code}"] += 1


Caller = Callable[[Target, Tally, random.Random], Awaitable[None]]

CALLERS: dict[Caller, int] = {
    good: 5,
    good_stream: 2,
    good_open_inference: 2,
    bad: 2,
    not_protobuf: 1,
    huge: 1,
    cancelled: 2,
}
"""Who calls, and how many of them at a time."""

"""The good caller: a steady rate on a connection of its own, each answer checked, each wait measured."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc.aio
import numpy as np

from strangers.field import Field
from strangers.models import free_answer, free_sample
from support.images import file
from support.serving import encoded, open_channel, raw, softmax
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc

WARM_UP_CALLS = 5
WARM_UP_SECONDS = 30.0
MOST_KEPT = 5
"""Of the texts of what was lost, and of what was wrong."""

COLOURS = {"red": (200, 10, 30), "green": (20, 220, 10), "blue": (10, 40, 190)}
SIDES = ((96, 96), (104, 96))
"""Of the samples for `free`: a run of one takes some milliseconds."""

Ask = Callable[[int, float], Awaitable[str]]
"""Asks the request of a number with a deadline in seconds; returns what is wrong with the answer, or ""."""


@dataclass
class Report:
    """What came of the good caller's requests."""

    sent: int = 0
    lost: int = 0
    """Not answered by their deadline: refused, failed, late."""
    wrong: int = 0
    """Answered with something else than the right answer."""
    texts: list[str] = field(default_factory=list)
    """The first few of both."""
    waits: list[float] = field(default_factory=list)
    """Seconds from each request to its answer."""

    def percentile(self, q: float) -> float:
        """Return a wait that was measured, in seconds; infinity without any."""
        return float(np.percentile(self.waits, q, method="inverted_cdf")) if self.waits else float("inf")


async def good(field: Field, kind: str, rate: float, deadline: float) -> dict[str, Any]:
    """Call until the field's end, and return the Report's fields."""
    report = Report()
    loop = asyncio.get_running_loop()

    async def call(number: int) -> None:
        began = loop.time()
        try:
            async with asyncio.timeout(deadline + 1):  # of one that does not even end at its deadline
                problem = await ask(number, deadline)
        except grpc.aio.AioRpcError as error:
            report.lost += 1
            told = f"{error.code().name}: {error.details()}"
        except NotAnsweredError as error:
            report.lost += 1
            told = str(error)
        except TimeoutError:
            report.lost += 1
            told = "no end at all"
        else:
            report.waits.append(loop.time() - began)
            report.wrong += bool(problem)
            told = problem
        if told and len(report.texts) < MOST_KEPT:
            report.texts.append(told[:300])

    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(field.port))
        ask = await KINDS[kind](channel, field, stack)
        for number in range(WARM_UP_CALLS):
            problem = await ask(number, WARM_UP_SECONDS)
            assert not problem, problem
        await field.begin()
        calls: set[asyncio.Task[None]] = set()
        began = loop.time()
        for number in itertools.count():
            due = began + number / rate
            await asyncio.sleep(due - loop.time())
            if field.ended.is_set():
                break
            report.sent += 1
            calls.add(asyncio.create_task(call(number)))
        await asyncio.gather(*calls)
    return asdict(report)


def colour_of(number: int) -> str:
    return list(COLOURS)[number % len(COLOURS)]


def check(response: pb.ClassifyResponse, colour: str) -> str:
    """Return what is wrong with an answer to one image of a colour."""
    expected = max(softmax(*(channel / 10 for channel in COLOURS[colour])))
    for result in response.results:
        if not result.HasField("predictions"):
            return f"an error instead of {colour}: {result.error.message}"
        best = result.predictions.predictions[0]
        if best.label != colour or abs(best.probability - expected) > 1e-4:
            return f"expected {colour} {expected:.5f}, got {best.label} {best.probability:.5f}"
    return "" if len(response.results) == 1 else f"expected 1 result, got {len(response.results)}"


async def pixels(channel: grpc.aio.Channel, field: Field, stack: AsyncExitStack) -> Ask:
    """Classify pixels of the model's own size."""
    requests = {
        name: pb.ClassifyRequest(model="tiny", images=[raw(plain(*c))]) for name, c in COLOURS.items()
    }
    return _classifying(channel, field, requests)


async def photo(channel: grpc.aio.Channel, field: Field, stack: AsyncExitStack) -> Ask:
    """Classify files, which have to be decoded and resized."""
    requests = {
        name: pb.ClassifyRequest(model="tiny", images=[encoded(file(plain(*c, height=64, width=64)))])
        for name, c in COLOURS.items()
    }
    return _classifying(channel, field, requests)


def _classifying(channel: grpc.aio.Channel, field: Field, requests: dict[str, pb.ClassifyRequest]) -> Ask:
    stub = pb_grpc.ClassificationServiceStub(channel)

    async def ask(number: int, deadline: float) -> str:
        colour = colour_of(number)
        return check(await stub.Classify(requests[colour], timeout=deadline, metadata=field.metadata), colour)

    return ask


async def free(channel: grpc.aio.Channel, field: Field, stack: AsyncExitStack) -> Ask:
    """Ask the model of free sizes, with samples of two sizes in turn."""
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

    async def ask(number: int, deadline: float) -> str:
        red, green, blue = COLOURS[colour_of(number)]
        colour = (red / 255, green / 255, blue / 255)
        request = infer(free_sample(colour, *SIDES[number % len(SIDES)])[None])
        response = await stub.ModelInfer(request, timeout=deadline, metadata=field.metadata)
        got = np.frombuffer(response.raw_output_contents[0], np.float32)
        expected = free_answer(colour)
        if got.shape == expected.shape and np.allclose(got, expected, atol=1e-4):
            return ""
        return f"expected {expected[:3]} …, got {got[:3]} …"

    return ask


def infer(batch: np.ndarray, **fields: Any) -> open_inference_pb2.ModelInferRequest:
    """Return a request to `free` with N×3×H×W samples as raw bytes."""
    request = open_inference_pb2.ModelInferRequest(model_name="free", **fields)
    request.inputs.add(name="x", datatype="FP32", shape=batch.shape)
    request.raw_input_contents.append(batch.astype(np.float32).tobytes())
    return request


async def stream(channel: grpc.aio.Channel, field: Field, stack: AsyncExitStack) -> Ask:
    """Classify over one stream, several requests under way at a time."""
    call = pb_grpc.ClassificationServiceStub(channel).ClassifyStream(metadata=field.metadata)
    stack.callback(call.cancel)
    waiting: dict[str, asyncio.Future[pb.ClassifyStreamResponse]] = {}
    names = map(str, itertools.count())
    one_at_a_time = asyncio.Lock()

    async def read() -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            waiting.pop(response.id).set_result(response)
        raise NotAnsweredError("the stream ended")

    reading = asyncio.create_task(read())
    stack.callback(reading.cancel)

    async def ask(number: int, deadline: float) -> str:
        colour, name = colour_of(number), next(names)
        answered = waiting[name] = asyncio.get_running_loop().create_future()
        request = pb.ClassifyRequest(model="tiny", images=[raw(plain(*COLOURS[colour]))])
        async with one_at_a_time:
            await call.write(
                pb.ClassifyStreamRequest(id=name, request=request, timeout_ms=int(deadline * 1000))
            )
        await asyncio.wait({answered, reading}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            reading.result()  # raises what ended the stream
        response = answered.result()
        if not response.HasField("response"):
            raise NotAnsweredError(f"{response.error.code}: {response.error.message}")
        return check(response.response, colour)

    return ask


class NotAnsweredError(Exception):
    """A request of a stream was refused, or failed."""


KINDS = {kind.__name__: kind for kind in (pixels, photo, free, stream)}
"""What the good caller asks, by name."""

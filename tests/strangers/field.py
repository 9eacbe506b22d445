"""What a player plays on: a server, connections to it, a pace and an end; and what an attack is."""

import asyncio
import itertools
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio

from support.serving import open_channel
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc

PAUSE_SECONDS = 0.005
"""Between two requests of one attacker: what a server bears at most is the benchmark's to say."""

LONG_SECONDS = 20.0
"""The deadline of an attacker that has a patient one."""
POLL_SECONDS = 0.01


class Field:
    """One player's side of a server."""

    def __init__(
        self, port: int, token: str, seconds: float, *, attacking: bool = True, seed: int = 0
    ) -> None:
        self.port = port
        self.token = token
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.chance = random.Random(seed)
        self.endings: Counter[str] = Counter()
        """How an attack's requests ended: status → times."""
        self.ended = asyncio.Event()
        self._seconds = seconds
        self._attacking = attacking
        self._clock: asyncio.Task[None] | None = None
        self._channels: list[grpc.aio.Channel] = []

    async def begin(self) -> None:
        """Say that everything is prepared, wait for the word, and start the clock.

        On a busy machine an attack may not get its turn within the time: the end waits until one of its
        requests has ended, LONG_SECONDS more at most.
        """
        print("ready", flush=True)  # noqa: T201  to the one who started this process
        await asyncio.to_thread(sys.stdin.readline)
        self._clock = asyncio.create_task(self._end())

    async def _end(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._seconds)
        latest = loop.time() + LONG_SECONDS
        while self._attacking and not self.endings and loop.time() < latest:
            await asyncio.sleep(POLL_SECONDS)
        self.ended.set()

    def channel(self) -> grpc.aio.Channel:
        """Return a new connection, which ends with the field."""
        channel = open_channel(self.port)
        self._channels.append(channel)
        return channel

    def classification(self) -> pb_grpc.ClassificationServiceStub:
        """Return a stub on a new connection."""
        return pb_grpc.ClassificationServiceStub(self.channel())

    def open_inference(self) -> open_inference_pb2_grpc.GRPCInferenceServiceStub:
        """Return a stub on a new connection."""
        return open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel())

    def classify(
        self, stub: Any, *images: pb.Image, deadline: float | None = LONG_SECONDS, **fields: Any
    ) -> Awaitable[Any]:
        """Begin a request of images to `tiny`, or to the model that `fields` name."""
        request = pb.ClassifyRequest(images=images, **({"model": "tiny"} | fields))
        return stub.Classify(request, timeout=deadline, metadata=self.metadata)

    def infer(
        self,
        stub: Any,
        request: open_inference_pb2.ModelInferRequest,
        *,
        deadline: float | None = LONG_SECONDS,
    ) -> Awaitable[Any]:
        """Begin a request of tensors."""
        return stub.ModelInfer(request, timeout=deadline, metadata=self.metadata)

    def numbers(self) -> Iterator[int]:
        """Count from 0 until the end.

        To cancel is not enough: asyncio.wait_for may swallow it when what it waits for is done that moment.
        """
        for number in itertools.count():
            if self.ended.is_set():
                return
            yield number

    async def crowd(
        self, callers: Iterable[Callable[[], Awaitable[Any]]], *, pause: float = PAUSE_SECONDS
    ) -> None:
        """Let each of the callers call again and again, one request at a time, until the end.

        How the requests end is counted, also of those that are taken back at the end.
        """

        async def go_on(call: Callable[[], Awaitable[Any]]) -> None:
            for _ in self.numbers():
                try:
                    self.endings[await ending(call)] += 1
                except asyncio.CancelledError:
                    self.endings[TAKEN_BACK] += 1
                    raise
                await asyncio.sleep(pause)

        await self.until_the_end(go_on(call) for call in callers)

    async def until_the_end(self, plays: Iterable[Awaitable[None]]) -> None:
        """Let all of them play until the end. Raises what one raises, which is a fault of the attack's."""
        tasks = [asyncio.ensure_future(play) for play in plays]
        end = asyncio.ensure_future(self.ended.wait())
        try:
            while not end.done() and (left := [task for task in tasks if not task.done()]):
                await asyncio.wait({end, *left}, return_when=asyncio.FIRST_COMPLETED)
                for task in left:
                    if task.done():
                        task.result()
            await end
        finally:
            for task in (end, *tasks):
                task.cancel()
            await asyncio.gather(end, *tasks, return_exceptions=True)

    async def close(self) -> None:
        """End the connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


async def ending(call: Callable[[], Awaitable[Any]]) -> str:
    """Return the name of the status that a call ends with."""
    try:
        await call()
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return "CANCELLED"
    return "OK"


Play = Callable[[Field], Awaitable[None]]
"""Prepares, calls `field.begin()`, and attacks until the field's end."""

REFUSED = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"}
)
"""How requests end that are the caller's fault."""

LOAD = frozenset({"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"})
"""How requests end that could be answered, but perhaps not in time."""

TAKEN_BACK = "taken back"
"""What is counted of a request that is under way when the attack ends."""

CONNECTED = frozenset({"connected"})
"""What is counted of attacks that never wait for a status: their connections."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One way in which a caller can be bad."""

    play: Play
    beside: str
    """What the good caller asks meanwhile, of good.KINDS."""
    expected: frozenset[str]
    """The statuses that its requests may end with; whoever provokes another found a fault."""
    entitled: str
    """What of the server's time is the attacker's by right, and with that what the good caller waits for."""
    deadline: float
    """Of the good caller's requests, in seconds."""

    @property
    def name(self) -> str:
        """The name of the function that plays it, in words."""
        return self.play.__name__.replace("_", " ")

    @property
    def does(self) -> str:
        """What it does, in a line."""
        return str(self.play.__doc__).splitlines()[0]


ATTACKS: dict[str, Attack] = {}
"""Those of the modules that are imported; attacks.ATTACKS has all."""

GOOD_DEADLINE_SECONDS = 5.0


def attack(
    *, beside: str, expected: frozenset[str], entitled: str, deadline: float = GOOD_DEADLINE_SECONDS
) -> Callable[[Play], Play]:
    """Add the decorated function to the attacks."""

    def add(play: Play) -> Play:
        ATTACKS[play.__name__] = Attack(play, beside, expected, entitled, deadline)
        return play

    return add

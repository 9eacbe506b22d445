"""A scripted asyncio gRPC server in the test's own loop."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest

from vistazo_bench.measuring.load import CLASSIFY_METHOD, Target

Behaviour = Callable[[int, grpc.aio.ServicerContext], Awaitable[bytes]]


@dataclass
class Scripted:
    """Answers the n-th request as `behaviour(n, context)` says; counts what runs at once."""

    behaviour: Behaviour
    address: str = ""
    requests: list[bytes] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def classify(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.behaviour(len(self.requests) - 1, context)
        finally:
            self.running -= 1

    def target(self, *requests: bytes) -> Target:
        return Target(self.address, requests or (b"a", b"b"))


@pytest.fixture
def scripted():
    """Return an async context manager: a behaviour in, a running Scripted out."""

    @asynccontextmanager
    async def start(behaviour: Behaviour) -> AsyncIterator[Scripted]:
        script = Scripted(behaviour)
        service, name = CLASSIFY_METHOD.strip("/").split("/")
        handlers = {name: grpc.unary_unary_rpc_method_handler(script.classify)}
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        script.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield script
        finally:
            await server.stop(None)

    return start

"""A real server in the test's event loop, a channel to it, and what tests ask about it."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_server.server import RunningServer, running
from vistazo_server.settings import Settings

# Far above what any of this takes on a busy machine: reached only by what would never have come.
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Serving:
    """A running server and the stubs of one channel to it."""

    server: RunningServer
    channel: grpc.aio.Channel
    stub: Any
    health: Any

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def classify(
        self, *images: pb.Image, deadline: float | None = PATIENCE_SECONDS, **fields: Any
    ) -> Any:
        """Return the response to a request of `images`."""
        return await self.stub.Classify(pb.ClassifyRequest(images=images, **fields), timeout=deadline)

    async def health_of(self, service: str = "") -> str:
        """Return the name of a service's health."""
        response = await self.health.Check(
            health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_SECONDS
        )
        return status_name(response)

    def sample(self, name: str, **labels: str) -> float:
        """Return the value of a metric's series now; 0 where there is none."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    def queued(self, model: str = "tiny", version: str = "1") -> float:
        """Return the samples that wait for a batch."""
        return self.sample("vistazo_inference_queue_samples", model=model, version=version)

    def in_flight(self, model: str = "tiny", version: str = "1") -> float:
        """Return the requests that were admitted and are not answered."""
        return self.sample("vistazo_inference_in_flight_requests", model=model, version=version)

    def outcomes(self, model: str = "tiny", version: str = "1") -> dict[str, float]:
        """Return how many inference requests ended how, without the zeros."""
        counts = {
            outcome: self.sample(
                "vistazo_inference_requests_total", model=model, version=version, outcome=outcome
            )
            for outcome in ("ok", "invalid", "rejected", "deadline", "cancelled", "error")
        }
        return {outcome: count for outcome, count in counts.items() if count}


def status_name(response: health_pb2.HealthCheckResponse) -> str:
    """Return the health that a response tells."""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def settings_for(models: Path, **overrides: Any) -> Settings:
    """Return settings for a test: free ports, one thread, no metrics endpoint unless asked for."""
    values = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "device": "cpu",
        "threads": 1,
        "drain_delay_seconds": 0,
    } | overrides
    return Settings(models=models, **values)


@asynccontextmanager
async def serving(
    models: Path, *, wait: bool = True, credentials: grpc.ChannelCredentials | None = None, **overrides: Any
) -> AsyncIterator[Serving]:
    """Hold a server of the repository `models`; with `wait`, its models are loaded (or failed) already.

    With `credentials` the channel to it speaks TLS.
    """
    async with running(settings_for(models, **overrides)) as server:
        if wait:
            await server.loading
        async with open_channel(server.port, credentials) as channel:
            yield Serving(
                server,
                channel,
                pb_grpc.ClassificationServiceStub(channel),
                health_pb2_grpc.HealthStub(channel),
            )


def open_channel(port: int, credentials: grpc.ChannelCredentials | None = None) -> grpc.aio.Channel:
    """Return a channel of its own connection to a server on this machine."""
    address = f"127.0.0.1:{port}"
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", -1),
        # Else two channels with the same options share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


async def occupy(server: Serving, image: pb.Image) -> list[asyncio.Task[Any]]:
    """Make the engine of a slow model busy, so that what comes next waits; return the requests that do it.

    With batches of one: one request runs, the next is formed already. Only what comes then is in the queue.
    """
    requests = []
    for number in (1, 2):
        requests.append(asyncio.create_task(server.classify(image)))
        await until(lambda number=number: server.in_flight() == number and server.queued() == 0)
    return requests


async def until(condition: Callable[[], bool], *, what: str = "the condition") -> None:
    """Return once `condition()` holds; fail when it never does."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true in {PATIENCE_SECONDS:g} s") from None


def raw(pixels: np.ndarray) -> pb.Image:
    """Return uint8 H×W×C pixels as a request's image."""
    height, width, channels = pixels.shape
    return pb.Image(raw=pb.RawPixels(data=pixels.tobytes(), height=height, width=width, channels=channels))


def encoded(data: bytes) -> pb.Image:
    """Return the bytes of a file as a request's image."""
    return pb.Image(encoded=data)


def labels(result: pb.ImageResult) -> list[str]:
    """Return the labels of a result, most probable first."""
    assert result.WhichOneof("outcome") == "predictions", result.error.message
    return [prediction.label for prediction in result.predictions.predictions]


def probabilities(result: pb.ImageResult) -> dict[str, float]:
    """Return the probability of each label in a result."""
    return {prediction.label: prediction.probability for prediction in result.predictions.predictions}


def softmax(*logits: float) -> list[float]:
    """Return what the server makes of logits."""
    exponents = [math.exp(logit - max(logits)) for logit in logits]
    return [exponent / sum(exponents) for exponent in exponents]


def pushback(error: grpc.aio.AioRpcError) -> int | None:
    """Return the milliseconds after which the server said to retry; None where it did not."""
    trailers: Sequence[tuple[str, Any]] = tuple(error.trailing_metadata() or ())
    value = dict(trailers).get("grpc-retry-pushback-ms")
    return None if value is None else int(value)

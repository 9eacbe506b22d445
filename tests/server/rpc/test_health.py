"""What the health service says of the server and its models, and to whom it tells changes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from support.serving import status_name
from vistazo_server.repository.catalog import CatalogEntry, ModelState
from vistazo_server.rpc.health import LIVENESS, SERVER_WIDE, HealthServicer, ServingStatus
from vistazo_server.telemetry.metrics import Metrics

CLASSIFICATION = "vistazo.v1.ClassificationService"
OPEN_INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"


class Context:
    """What a servicer is given, of which it uses these."""

    def __init__(self) -> None:
        self.written: asyncio.Queue[str] = asyncio.Queue()

    async def write(self, response: health_pb2.HealthCheckResponse) -> None:
        await self.written.put(status_name(response))

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise LookupError(code.name)


async def check(servicer: HealthServicer, service: str) -> str:
    """Return a service's health, or the name of the status that the question ends with."""
    try:
        return status_name(await servicer.Check(health_pb2.HealthCheckRequest(service=service), Context()))
    except LookupError as error:
        return str(error)


async def of_all(status: ServingStatus, *services: str) -> set[str]:
    return {await check(status.servicer, service) for service in services}


@asynccontextmanager
async def watching(servicer: HealthServicer, service: str) -> AsyncIterator[asyncio.Queue[str]]:
    context = Context()
    watch = asyncio.create_task(servicer.Watch(health_pb2.HealthCheckRequest(service=service), context))
    try:
        yield context.written
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def settle() -> None:
    """Let the watchers run that have something to tell."""
    for _ in range(5):
        await asyncio.sleep(0)


def new_status() -> ServingStatus:
    return ServingStatus(Metrics(CollectorRegistry()))


def tell(status: ServingStatus, model: str, state: ModelState, *, serving: bool | None = None) -> None:
    """Tell of a model whose only version has this state."""
    serving = state is ModelState.READY if serving is None else serving
    status.state_changed(CatalogEntry(model, "1", state), serving=serving)


# Ready


async def test_the_server_is_live_and_not_ready_until_it_is_told():
    status = new_status()
    assert await check(status.servicer, LIVENESS) == "SERVING"
    assert await of_all(status, *SERVER_WIDE) == {"NOT_SERVING"}

    status.ready(once_a_model_serves=False)

    assert await of_all(status, *SERVER_WIDE) == {"SERVING"}
    assert status.is_ready.is_set()


async def test_a_server_without_a_model_becomes_ready_with_its_first_and_stays_so():
    status = new_status()
    tell(status, "tiny", ModelState.FAILED)
    async with watching(status.servicer, "") as seen:
        assert await seen.get() == "NOT_SERVING"
        status.ready(once_a_model_serves=True)
        tell(status, "other", ModelState.LOADING)
        assert await of_all(status, *SERVER_WIDE) == {"NOT_SERVING"}
        assert not status.is_ready.is_set()

        tell(status, "other", ModelState.READY)
        assert await of_all(status, *SERVER_WIDE) == {"SERVING"}
        assert status.is_ready.is_set()
        tell(status, "other", ModelState.UNLOADING)
        tell(status, "other", ModelState.UNAVAILABLE)
        assert await of_all(status, *SERVER_WIDE) == {"SERVING"}

        assert await seen.get() == "SERVING"
        assert seen.empty()


async def test_a_model_that_serves_before_the_start_has_ended_makes_nothing_ready_early():
    status = new_status()
    tell(status, "tiny", ModelState.READY)
    assert await of_all(status, *SERVER_WIDE) == {"NOT_SERVING"}

    status.ready(once_a_model_serves=True)
    assert await of_all(status, *SERVER_WIDE) == {"SERVING"}


async def test_a_model_that_served_and_went_before_the_start_has_ended_does_not_count():
    status = new_status()
    tell(status, "tiny", ModelState.READY)
    tell(status, "tiny", ModelState.UNLOADING)
    status.ready(once_a_model_serves=True)
    assert await of_all(status, *SERVER_WIDE) == {"NOT_SERVING"}

    tell(status, "tiny", ModelState.FAILED, serving=True)  # another version of it answers
    assert await of_all(status, *SERVER_WIDE) == {"SERVING"}


async def test_a_drain_that_comes_before_the_first_model_lasts():
    status = new_status()
    status.ready(once_a_model_serves=True)
    status.servicer.drain()
    tell(status, "tiny", ModelState.READY)

    assert await of_all(status, "tiny", *SERVER_WIDE) == {"NOT_SERVING"}
    assert await check(status.servicer, LIVENESS) == "SERVING"


# Broken


async def test_a_broken_server_is_not_even_live_and_nothing_makes_it_serve_again():
    status = new_status()
    tell(status, "tiny", ModelState.READY)
    status.ready(once_a_model_serves=False)
    async with (
        watching(status.servicer, LIVENESS) as liveness,
        watching(status.servicer, "tiny") as tiny,
        watching(status.servicer, "") as server,
    ):
        assert [await seen.get() for seen in (liveness, tiny, server)] == ["SERVING"] * 3
        status.broken()
        assert [await seen.get() for seen in (liveness, tiny, server)] == ["NOT_SERVING"] * 3

        tell(status, "tiny", ModelState.READY)
        tell(status, "later", ModelState.READY)
        status.ready(once_a_model_serves=False)
        status.set(LIVENESS, serving=True)
        status.servicer.drain()
        status.broken()
        await settle()
        assert await of_all(status, LIVENESS, "tiny", "later", *SERVER_WIDE) == {"NOT_SERVING"}
        assert all(seen.empty() for seen in (liveness, tiny, server))


async def test_a_server_that_breaks_while_it_drains_is_no_longer_live():
    status = new_status()
    status.servicer.drain()
    assert await check(status.servicer, LIVENESS) == "SERVING"

    status.broken()

    assert await check(status.servicer, LIVENESS) == "NOT_SERVING"


# Names


@pytest.mark.parametrize("name", [LIVENESS, CLASSIFICATION, OPEN_INFERENCE, HEALTH, reflection.SERVICE_NAME])
async def test_a_model_that_is_called_like_a_service_of_the_server_changes_nothing_of_its_health(name):
    assert health.SERVICE_NAME == HEALTH
    status = new_status()
    status.ready(once_a_model_serves=False)
    before = await check(status.servicer, name)
    async with watching(status.servicer, name) as seen:
        first = await seen.get()
        with capture_logs() as logs:
            for state in ModelState:
                tell(status, name, state)
                assert await check(status.servicer, name) == before
            status.forgotten(name)
        await settle()
        assert seen.empty()

    assert first == ("SERVICE_UNKNOWN" if before == "NOT_FOUND" else "SERVING")
    assert [(log["event"], log["model"]) for log in logs] == [("model_without_health", name)]
    # One that comes back is said again.
    with capture_logs() as logs:
        tell(status, name, ModelState.LOADING)
    assert len(logs) == 1


async def test_a_model_that_is_called_like_a_service_counts_as_the_first_model():
    status = new_status()
    status.ready(once_a_model_serves=True)
    tell(status, OPEN_INFERENCE, ModelState.FAILED)
    assert await of_all(status, *SERVER_WIDE) == {"NOT_SERVING"}

    tell(status, OPEN_INFERENCE, ModelState.READY)
    assert await of_all(status, *SERVER_WIDE) == {"SERVING"}

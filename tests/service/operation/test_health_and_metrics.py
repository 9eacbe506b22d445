"""What operators and load balancers see: health, reflection, and the Prometheus endpoint."""

import asyncio
import time
import urllib.request
from contextlib import AsyncExitStack
from importlib.metadata import version

import grpc
import onnxruntime
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from support.images import file
from support.serving import encoded, occupy, raw, serving, settings_for, until
from support.tiny import plain, write_model
from vistazo_proto import classification_pb2 as pb
from vistazo_server.engine.onnx_model import INLINE_SECONDS
from vistazo_server.server import running

RED = raw(plain(200, 10, 10))
SERVICE = "vistazo.v1.ClassificationService"
OPEN_INFERENCE = "inference.GRPCInferenceService"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(server) -> Series:
    """Return every series that the endpoint tells over HTTP."""
    url = f"http://127.0.0.1:{server.server.metrics_port}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get() -> str:
        with opener.open(url, timeout=30) as response:
            assert response.headers.get_content_type() == "text/plain"
            return response.read().decode()

    text = await asyncio.to_thread(get)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((name, frozenset(labels.items())), 0.0)


def of_model(series: Series, name: str, **labels: str) -> float:
    return value(series, name, model="tiny", version="1", **labels)


def outcomes(series: Series) -> dict[str, float]:
    names = ("ok", "invalid", "rejected", "deadline", "cancelled", "error")
    return {name: of_model(series, "vistazo_inference_requests_total", outcome=name) for name in names}


def handled(series: Series, method: str) -> dict[str, float]:
    """Return how often a method ended with which code, without the zeros."""
    return {
        dict(labels)["grpc_code"]: count
        for (name, labels), count in series.items()
        if name == "grpc_server_handled_total" and dict(labels)["grpc_method"] == method and count
    }


async def status_of(call) -> grpc.StatusCode:
    """Return the status of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code()


# Health


async def test_health_knows_the_server_the_service_and_each_model(models):
    write_model(models, "other")
    async with serving(models) as server:
        assert {name: await server.health_of(name) for name in ("", SERVICE, "tiny", "other")} == {
            "": "SERVING",
            SERVICE: "SERVING",
            "tiny": "SERVING",
            "other": "SERVING",
        }


async def test_the_health_of_an_unknown_service_is_not_found(models):
    async with serving(models) as server:
        assert await status_of(server.health_of("nobody")) is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_sees_loading_then_serving_then_draining(slow_models):
    seen: dict[str, list[str]] = {"": [], SERVICE: [], "tiny": []}
    channel_options = [("grpc.enable_http_proxy", 0)]

    async def watch(channel: grpc.aio.Channel, name: str) -> None:
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name))
        try:
            async for response in call:
                seen[name].append(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
        except grpc.aio.AioRpcError:
            return  # the server has ended

    settings = settings_for(slow_models, max_batch_size=1, drain_delay_seconds=0.5, grace_seconds=1)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running(settings))
        # Not on the stack: the channel should outlive the server.
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=channel_options)
        watchers = [asyncio.create_task(watch(channel, name)) for name in seen]
        await until(lambda: all(seen.values()), what="all watchers saw the first state")
        await server.loading
    await asyncio.wait_for(asyncio.gather(*watchers), 30)
    await channel.close()

    assert seen == {name: ["NOT_SERVING", "SERVING", "NOT_SERVING"] for name in seen}


async def test_a_watcher_of_an_unknown_service_is_told_so_and_kept(models):
    async with serving(models) as server:
        call = server.health.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=30)

        assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert not call.done()
        call.cancel()


# Reflection


async def reflected(server, request: reflection_pb2.ServerReflectionRequest):
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    call = stub.ServerReflectionInfo(iter([request]), timeout=30)
    return await call.read()


async def test_reflection_lists_the_services_and_describes_them(models):
    async with serving(models) as server:
        listed = await reflected(server, reflection_pb2.ServerReflectionRequest(list_services=""))
        described = await reflected(
            server, reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
        )

    names = {service.name for service in listed.list_services_response.service}
    assert names == {
        SERVICE,
        OPEN_INFERENCE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert b"ClassifyStream" in b"".join(described.file_descriptor_response.file_descriptor_proto)


async def test_reflection_can_be_turned_off(models):
    async with serving(models, reflection=False) as server:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        assert await status_of(reflected(server, request)) is grpc.StatusCode.UNIMPLEMENTED


# Metrics


async def test_requests_are_counted_by_how_they_ended(slow_models):
    settings = {"metrics_listen": "127.0.0.1:0", "max_batch_size": 1, "queue_limit": 1}
    async with serving(slow_models, **settings) as server:
        before = await scrape(server)
        busy = await occupy(server, RED)
        waiting = asyncio.create_task(server.classify(RED))
        await until(lambda: server.queued() == 1)
        for _ in range(3):
            assert await status_of(server.classify(RED)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        waiting.cancel()
        await until(lambda: server.queued() == 0)
        await asyncio.gather(*busy)
        for bad in ({"top_k": 0}, {"top_k": 4}):
            assert await status_of(server.classify(RED, **bad)) is grpc.StatusCode.INVALID_ARGUMENT
        assert await status_of(server.classify(encoded(b"no"))) is grpc.StatusCode.INVALID_ARGUMENT
        await server.classify(encoded(file(plain(1, 2, 3))))
        after = await scrape(server)

    assert outcomes(before) == dict.fromkeys(outcomes(before), 0)
    assert outcomes(after) == {
        "ok": 3,
        "invalid": 3,
        "rejected": 3,
        "deadline": 0,
        "cancelled": 1,
        "error": 0,
    }
    assert handled(after, "Classify") == {
        "OK": 3,
        "INVALID_ARGUMENT": 3,
        "RESOURCE_EXHAUSTED": 3,
        "CANCELLED": 1,
    }
    assert of_model(after, "vistazo_image_decode_failures_total") == 1
    assert of_model(after, "vistazo_inference_samples_total") == 3
    assert of_model(after, "vistazo_inference_queue_limit") == 1
    assert of_model(after, "vistazo_inference_queue_samples") == 0
    assert of_model(after, "vistazo_inference_in_flight_requests") == 0
    assert of_model(after, "vistazo_inference_request_duration_seconds_count") == 3
    for stage in ("queue", "preprocess", "compute", "postprocess"):
        assert of_model(after, "vistazo_inference_stage_duration_seconds_count", stage=stage) == 3


async def test_a_deadline_that_passed_at_the_door_is_counted_as_such(models):
    settings = {"metrics_listen": "127.0.0.1:0", "default_deadline_ms": 0.001}
    async with serving(models, **settings) as server:
        for _ in range(2):
            code = await status_of(server.classify(RED, deadline=None))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        series = await scrape(server)

    assert {name: count for name, count in outcomes(series).items() if count} == {"deadline": 2}
    assert handled(series, "Classify") == {"DEADLINE_EXCEEDED": 2}


async def test_a_deadline_that_passes_while_the_engine_runs_is_counted_as_such_not_as_cancelled(slow_models):
    async with serving(slow_models, metrics_listen="127.0.0.1:0", max_batch_size=1) as server:
        batcher = server.server.repository.lease("tiny").loaded.classifier._batcher
        for _ in range(5):
            # Taken for fast, so that it is admitted, but not for so fast that it runs on the event loop.
            batcher.latency.set(1, 5 * INLINE_SECONDS)
            code = await status_of(server.classify(RED, deadline=0.1))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: server.in_flight() == 0)
            # The engine is free again when this one is answered.
            await server.classify(RED)
        series = await scrape(server)

    assert {name: count for name, count in outcomes(series).items() if count} == {"ok": 5, "deadline": 5}
    assert handled(series, "Classify") == {"OK": 5, "DEADLINE_EXCEEDED": 5}


async def test_rpcs_are_counted_by_method_kind_and_code(slow_models):
    async with serving(slow_models, metrics_listen="127.0.0.1:0", max_batch_size=1) as server:
        for _ in range(3):
            await server.stub.ListModels(pb.ListModelsRequest())
        await status_of(server.stub.GetModel(pb.GetModelRequest(name="nobody")))
        await status_of(server.stub.GetModel(pb.GetModelRequest()))
        request = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(images=[RED], model="nobody"))
        async for _ in server.stub.ClassifyStream(iter([request]), timeout=30):
            pass
        cancelled = server.stub.ClassifyStream(timeout=30)
        await cancelled.write(pb.ClassifyStreamRequest(request=pb.ClassifyRequest(images=[RED])))
        # An idle stream that is cancelled may look like one whose requests have ended.
        await until(lambda: server.in_flight() == 1)
        cancelled.cancel()
        labels = {"grpc_type": "bidi_stream", "grpc_service": SERVICE, "grpc_method": "ClassifyStream"}
        await until(
            lambda: server.sample("grpc_server_handled_total", grpc_code="CANCELLED", **labels) == 1,
            what="the cancelled stream was counted",
        )
        series = await scrape(server)

    unary = {"grpc_type": "unary", "grpc_service": SERVICE}
    assert handled(series, "ListModels") == {"OK": 3}
    assert handled(series, "GetModel") == {"NOT_FOUND": 1, "INVALID_ARGUMENT": 1}
    assert handled(series, "ClassifyStream") == {"OK": 1, "CANCELLED": 1}
    assert value(series, "grpc_server_started_total", **unary, grpc_method="ListModels") == 3
    assert value(series, "grpc_server_handling_seconds_count", **unary, grpc_method="GetModel") == 2
    assert value(series, "grpc_server_started_total", **labels) == 2


async def test_batches_are_counted_by_their_size(models):
    async with serving(models, metrics_listen="127.0.0.1:0", max_batch_size=4) as server:
        for size in (1, 3, 4, 9):
            await server.classify(*[RED] * size)
        series = await scrape(server)

    # 9 samples leave as 4, 4 and 1.
    buckets = {
        edge: of_model(series, "vistazo_inference_batch_size_bucket", le=edge)
        for edge in ("1.0", "2.0", "4.0", "+Inf")
    }
    assert buckets == {"1.0": 2, "2.0": 2, "4.0": 6, "+Inf": 6}
    assert of_model(series, "vistazo_inference_batch_size_sum") == 17
    assert of_model(series, "vistazo_inference_samples_total") == 17
    assert of_model(series, "vistazo_inference_batches_total") == 6
    for size in ("1", "2", "4"):
        assert of_model(series, "vistazo_inference_batch_latency_seconds", batch_size=size) > 0


async def test_callers_cannot_add_series(models):
    async with serving(models, metrics_listen="127.0.0.1:0") as server:

        async def provoke(number: int) -> None:
            await status_of(server.classify(RED, model=f"stranger-{number}"))
            await status_of(server.classify(RED, version=str(number + 2)))
            await status_of(server.stub.GetModel(pb.GetModelRequest(name=f"stranger-{number}")))
            await status_of(server.health_of(f"stranger-{number}"))
            await status_of(server.channel.unary_unary(f"/{SERVICE}/Stranger{number}")(b""))
            await status_of(server.channel.unary_unary(f"/stranger.Service{number}/Call")(b""))

        await provoke(0)
        before = await scrape(server)
        for number in range(1, 30):
            await provoke(number)
        after = await scrape(server)

    assert set(after) == set(before)
    assert not [labels for _, labels in after if any("tranger" in text for _, text in labels)]


async def test_the_build_and_the_models_are_told(models):
    async with serving(models, metrics_listen="127.0.0.1:0") as server:
        series = await scrape(server)

    build = {"version": version("vistazo"), "onnxruntime": onnxruntime.__version__, "device": "cpu"}
    assert value(series, "vistazo_build_info", **build) == 1
    assert of_model(series, "vistazo_model_ready") == 1
    assert of_model(series, "vistazo_model_load_duration_seconds") > 0
    assert value(series, "process_resident_memory_bytes") > 0


async def test_every_series_of_a_model_is_there_before_its_first_request(models):
    async with serving(models, metrics_listen="127.0.0.1:0") as server:
        before = await scrape(server)
        await server.classify(encoded(file(plain(1, 2, 3))))
        after = await scrape(server)

    def of_ours(series: Series) -> set[str]:
        return {str((name, sorted(labels))) for name, labels in series if name.startswith("vistazo_")}

    assert of_ours(before) == of_ours(after)


async def test_without_an_address_there_is_no_endpoint(models):
    async with serving(models, metrics_listen="") as server:
        assert server.server.metrics_port is None


async def test_a_held_event_loop_shows_in_its_delay(models):
    async with serving(models, metrics_listen="127.0.0.1:0") as server:
        name = "vistazo_event_loop_delay_seconds"
        seen = server.sample(f"{name}_count")
        await until(lambda: server.sample(f"{name}_count") > seen, what="the loop was looked at")
        before = await scrape(server)
        # The server's loop is this test's.
        time.sleep(1.0)  # noqa: ASYNC251
        await until(
            lambda: server.sample(f"{name}_sum") > value(before, f"{name}_sum") + 0.9,
            what="the delay was told",
        )
        after = await scrape(server)
        watchers = [task for task in asyncio.all_tasks() if task.get_name() == "watch-loop"]

    assert value(after, f"{name}_bucket", le="+Inf") == value(after, f"{name}_count")
    assert value(after, f"{name}_bucket", le="0.5") < value(after, f"{name}_bucket", le="2.0")
    assert [task.done() for task in watchers] == [True]

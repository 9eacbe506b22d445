"""Live, ready, drained, ended: what each looks like from outside, and the exit status of every end."""

import asyncio
import shutil
import signal
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from support.callers import callers, metric, wait_until
from support.process import PATIENCE_SECONDS, server_process, vistazo
from support.serving import labels, open_channel, raw, serving, settings_for, status_name
from support.tiny import plain, tiny_model, write_files, write_model
from vistazo_client import Client, UnavailableError
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc
from vistazo_server.errors import ModelControlError, ModelNotFoundError
from vistazo_server.server import running

RED = plain(200, 10, 10)
NO_PROXY = [("grpc.enable_http_proxy", 0)]
LIVENESS = "liveness"


def health(channel: grpc.Channel, service: str = "") -> str:
    request = health_pb2.HealthCheckRequest(service=service)
    return status_name(health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_SECONDS))


# Health


async def test_it_is_live_before_it_is_ready_and_ready_when_its_models_are(slow_models):
    async with serving(slow_models, wait=False) as server:
        before = [await server.health_of(service) for service in (LIVENESS, "", "tiny")]
        await server.server.loading
        after = [await server.health_of(service) for service in (LIVENESS, "", "tiny")]

    assert before == ["SERVING", "NOT_SERVING", "NOT_SERVING"]
    assert after == ["SERVING", "SERVING", "SERVING"]


async def test_a_model_that_failed_is_not_ready_though_the_server_is(models):
    write_model(models, "broken").joinpath("model.onnx").write_bytes(b"no model")
    async with serving(models) as server:
        ready = {service: await server.health_of(service) for service in (LIVENESS, "", "tiny", "broken")}

    assert ready == {LIVENESS: "SERVING", "": "SERVING", "tiny": "SERVING", "broken": "NOT_SERVING"}


async def test_when_the_scheduling_ends_by_a_bug_health_says_so_liveness_included(models):
    async with serving(models, grace_seconds=0.1) as server:
        batcher = server.server.repository.lease("tiny").loaded.classifier._batcher

        def bug():
            raise RuntimeError("a bug")

        batcher.ready_at = bug
        batcher._device.notify()
        while await server.health_of(LIVENESS) == "SERVING":
            await asyncio.sleep(0.01)
        services = (LIVENESS, "", "tiny")
        health = [await server.health_of(service) for service in services]
        inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        live = await inference.ServerLive(open_inference_pb2.ServerLiveRequest())

    assert health == ["NOT_SERVING"] * 3
    assert not live.live


async def test_a_watcher_that_leaves_does_not_blind_the_others(models):
    async with running(settings_for(models, grace_seconds=5)) as server:
        await server.loading
        async with open_channel(server.port) as one, open_channel(server.port) as other:
            watches = [
                health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="tiny"))
                for channel in (one, other)
            ]
            assert [status_name(await watch.read()) for watch in watches] == ["SERVING", "SERVING"]
            watches[0].cancel()
            # The server has noticed: this comes after it on the same connection.
            await health_pb2_grpc.HealthStub(one).Check(health_pb2.HealthCheckRequest())
            server.repository._observer.set("tiny", serving=False)

            assert status_name(await asyncio.wait_for(watches[1].read(), PATIENCE_SECONDS)) == "NOT_SERVING"
            watches[1].cancel()


CLASSIFICATION = "vistazo.v1.ClassificationService"
OPEN_INFERENCE = "inference.GRPCInferenceService"
SERVER_WIDE = ("", CLASSIFICATION, OPEN_INFERENCE)


async def readiness(server) -> list[str]:
    """Return the server-wide services' health, and what the Open Inference Protocol says."""
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
    ready = (await stub.ServerReady(open_inference_pb2.ServerReadyRequest())).ready
    return [*[await server.health_of(service) for service in SERVER_WIDE], "READY" if ready else "NOT_READY"]


READY = ["SERVING"] * 3 + ["READY"]
NOT_READY = ["NOT_SERVING"] * 3 + ["NOT_READY"]


def broken(models):
    (models / "tiny" / "1" / "model.onnx").write_bytes(b"no model")


def empty(models):
    shutil.rmtree(models / "tiny")


@pytest.mark.parametrize("spoil", [broken, empty])
async def test_a_polling_server_with_nothing_to_serve_stays_up_and_is_ready_with_its_first_model(
    models, spoil
):
    spoil(models)
    async with serving(models, model_control="poll", poll_seconds=0.02) as server:
        assert await server.health_of(LIVENESS) == "SERVING"
        assert await readiness(server) == NOT_READY
        watching = server.health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
        assert status_name(await watching.read()) == "NOT_SERVING"

        write_model(models, "other")
        assert status_name(await watching.read()) == "SERVING"
        assert await readiness(server) == READY
        assert labels((await server.classify(raw(RED), model="other")).results[0])[0] == "red"
        watching.cancel()


async def test_a_polling_server_follows_the_repair_of_its_only_model(models):
    broken(models)
    async with serving(models, model_control="poll", poll_seconds=0.02) as server:
        assert await readiness(server) == NOT_READY
        assert (await server.stub.GetModel(pb.GetModelRequest(name="tiny"))).state == pb.FAILED

        write_files(models / "tiny" / "1")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await server.server.is_ready.wait()
        assert await readiness(server) == READY
        assert await server.health_of("tiny") == "SERVING"


async def test_an_explicit_server_whose_models_all_failed_is_ready_when_a_caller_loads_one(models):
    broken(models)
    write_model(models, "other")
    async with serving(models, model_control="explicit", load="tiny") as server:
        assert await server.health_of(LIVENESS) == "SERVING"
        assert await readiness(server) == NOT_READY
        with pytest.raises(ModelControlError, match="model tiny failed to load"):
            await server.server.repository.load("tiny")
        assert await readiness(server) == NOT_READY

        await server.server.repository.load("other")
        assert await readiness(server) == READY
        # What callers take away themselves is no reason to send them elsewhere.
        await server.server.repository.unload("other")
        assert await readiness(server) == READY


async def test_a_drain_before_the_first_model_ends_cleanly(models):
    empty(models)
    async with serving(models, model_control="poll", poll_seconds=0.02) as server:
        assert await readiness(server) == NOT_READY
    assert not server.server.is_ready.is_set()


def test_the_command_says_that_nothing_is_loaded_and_ready_with_the_first_model(models):
    broken(models)
    poll = ("--model-control", "poll", "--poll-seconds", "0.05")
    with server_process(models, *poll, ready=False) as server, Client(server.address) as client:
        nothing = server.wait_for("nothing_loaded")
        assert not client.health()
        assert client.health(LIVENESS)
        write_model(models, "other")
        ready = server.wait_for("ready")
        assert client.health()
        server.terminate()
        assert server.wait() == 0

    assert "tiny: " in nothing["reason"]
    assert ready["port"] == server.port
    assert [line["event"] for line in server.log] == [
        *("listening", "model_failed", "nothing_loaded", "model_ready", "ready", "draining", "stopped")
    ]


def test_the_command_can_be_ended_while_it_waits_for_its_first_model(models):
    empty(models)
    with server_process(models, "--model-control", "poll", ready=False) as server:
        with Client(server.address) as client:
            assert not client.health()
        server.terminate()
        assert server.wait() == 0

    assert [line["event"] for line in server.log] == ["listening", "draining", "stopped"]
    assert server.other_output == []


@pytest.mark.parametrize("name", [LIVENESS, CLASSIFICATION, OPEN_INFERENCE, "grpc.health.v1.Health"])
async def test_a_model_that_is_called_like_a_service_is_served_and_leaves_the_services_health_alone(
    models, name
):
    async def health_of(server) -> str:
        try:
            return await server.health_of(name)
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async with serving(models) as without:
        expected = await health_of(without)
    write_model(models, name)
    with capture_logs() as logs:
        async with serving(models, model_control="explicit", load="*") as server:
            watching = server.health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=60)
            first = status_name(await watching.read())
            changes = asyncio.create_task(watching.read())
            repository = server.server.repository
            assert (await server.classify(raw(RED), model=name)).model == name
            for change in (repository.unload, repository.load, repository.unload):
                await change(name)
                assert await health_of(server) == expected
            (models / name / "1" / "model.onnx").write_bytes(b"no model")
            with pytest.raises(ModelControlError):
                await repository.load(name)
            assert await health_of(server) == expected
            shutil.rmtree(models / name)
            await repository.unload(name)
            with pytest.raises(ModelNotFoundError):  # forgotten
                repository.entry(name)
            assert await health_of(server) == expected
            assert not changes.done()
            changes.cancel()

    assert first == ("SERVICE_UNKNOWN" if expected == "NOT_FOUND" else "SERVING")
    assert [log["model"] for log in logs if log["event"] == "model_without_health"] == [name]


# The drain


def test_callers_see_answers_and_unavailable_and_nothing_else_when_it_ends(models):
    with server_process(models) as server, callers(server, count=8, deadline=PATIENCE_SECONDS) as endings:
        server.terminate()
        assert server.wait() == 0
        wait_until(lambda: endings["UNAVAILABLE"] >= 8)

    assert set(endings) == {"OK", "UNAVAILABLE"}


def test_while_it_drains_it_is_live_not_ready_and_its_metrics_can_be_read(tmp_path):
    write_model(tmp_path, model=tiny_model(cost=1200))  # about half a second a sample
    with (
        server_process(tmp_path, "--max-batch-size", "1", "--threads", "1") as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
        Client(server.address, retries=0) as late,
    ):
        stub = pb_grpc.ClassificationServiceStub(channel)
        request = pb.ClassifyRequest(images=[raw(RED)] * 8)
        answer = stub.Classify.future(request, timeout=PATIENCE_SECONDS)
        wait_until(lambda: metric(server, "vistazo_inference_in_flight_requests") == 1)
        assert late.health()
        server.terminate()
        server.wait_for("draining")
        # The drain delay is over when the port takes nothing new.
        refused = threading.Event()

        def be_late() -> None:
            try:
                while True:
                    late.models()
            except UnavailableError:
                refused.set()

        thread = threading.Thread(target=be_late)
        thread.start()
        assert refused.wait(PATIENCE_SECONDS)
        thread.join()
        # The port is closing, the request goes on, and what is left can be watched.
        assert not answer.done()
        assert metric(server, "vistazo_inference_in_flight_requests") == 1
        assert [labels(result)[0] for result in answer.result().results] == ["red"] * 8
        assert server.wait() == 0

    assert [line["event"] for line in server.log][-2:] == ["draining", "stopped"]


def test_in_the_drain_delay_liveness_stays(models):
    with (
        server_process(models, "--drain-delay-seconds", "2") as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
    ):
        assert health(channel) == "SERVING"
        server.terminate()
        server.wait_for("draining")
        wait_until(lambda: health(channel) == "NOT_SERVING")

        assert health(channel, LIVENESS) == "SERVING"
        assert server.wait() == 0


# Open files


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize(("connections", "allowed"), [("500", 628), ("50", 256)])
def test_the_limit_of_open_files_is_raised_to_what_connections_need(models, connections, allowed):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))  # the process inherits it
    try:
        with server_process(models, "--max-connections", connections) as server:
            soft = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert soft == allowed


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(models, number):
    with server_process(models, "--drain-delay-seconds", "600") as server:
        server.process.send_signal(number)
        server.wait_for("draining")
        before = time.monotonic()
        server.process.send_signal(number)

        assert server.wait() == 128 + number
        assert time.monotonic() - before < 60  # a tenth of the delay
    assert server.log[-1]["event"] == "stopped_at_once"
    assert server.log[-1]["signal"] == number.name


def test_a_signal_while_models_load_ends_it_cleanly(tmp_path):
    write_model(tmp_path, model=tiny_model(cost=1200))
    with server_process(tmp_path, ready=False) as server:
        server.terminate()

        assert server.wait() == 0


def test_what_cannot_start_ends_with_1_and_what_makes_no_sense_with_2(models, tmp_path):
    address = ("--listen", "127.0.0.1:0", "--metrics-listen", "")
    (tmp_path / "empty").mkdir()

    assert vistazo("serve", "--models", tmp_path / "empty", *address).returncode == 1
    assert vistazo("serve", "--models", models, "--listen", "nowhere").returncode == 2
    assert vistazo("serve", "--nonsense").returncode == 2
    assert vistazo("serve", "--help").returncode == 0

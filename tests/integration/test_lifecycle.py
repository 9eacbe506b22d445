"""Live, ready, drained, ended: what each looks like from outside, and the exit status of every end."""

import asyncio
import signal
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.callers import callers, metric, wait_until
from support.process import PATIENCE_SECONDS, server_process, vistazo
from support.serving import labels, open_channel, raw, serving, settings_for, status_name
from support.tiny import plain, tiny_model, write_model
from vistazo_client import Client, UnavailableError
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
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

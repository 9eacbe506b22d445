"""SIGTERM to the real command under load: nothing that was accepted is lost."""

import random
import signal
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from support.process import PATIENCE_SECONDS, ServerProcess, server_process
from support.serving import labels, raw
from support.tiny import plain, tiny_model, write_model
from vistazo_client import Client, UnavailableError, VistazoError
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc
from vistazo_server.rpc.stream import REQUESTS_IN_FLIGHT

CALLERS = 8
COLOURS = {"red": plain(200, 10, 10), "green": plain(10, 200, 10), "blue": plain(10, 10, 200)}
# From a caller's call to the server's having read it, on a machine with more to do.
ARRIVAL_SECONDS = 0.1
IN_FLIGHT = 'vistazo_inference_in_flight_requests{model="tiny",version="1"} '
NO_PROXY = [("grpc.enable_http_proxy", 0)]


@pytest.fixture
def loaded_models(tmp_path: Path) -> Path:
    """A model that takes about 20 ms a sample, so that requests wait when the signal comes."""
    write_model(tmp_path, model=tiny_model(cost=60))
    return tmp_path


@dataclass
class Load:
    """Callers in threads of their own, each with a connection of its own, and what they saw."""

    address: str
    answered: int = 0
    refused: list[float] = field(default_factory=list)
    """When each refused request was sent."""
    wrong: list[str] = field(default_factory=list)
    """Whatever else happened; should stay empty."""
    warm: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: threading.Event = field(default_factory=threading.Event)

    def start(self, seed: int) -> None:
        self._threads = [
            threading.Thread(target=self._call, args=(random.Random(f"{seed}-{number}"),))
            for number in range(CALLERS)
        ]
        for thread in self._threads:
            thread.start()
        # Everyone has had an answer: connections are up and requests are under way.
        for _ in range(CALLERS):
            assert self.warm.acquire(timeout=PATIENCE_SECONDS)

    def join(self) -> None:
        self.ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()

    def _call(self, chance: random.Random) -> None:
        with Client(self.address, timeout=PATIENCE_SECONDS) as client:
            refusals = 0
            # Each goes on a little after the server refused, to see that it refuses in one way only.
            while not self.ended.is_set() and refusals < 5:
                colours = chance.choices(list(COLOURS), k=chance.choice((1, 1, 2)))
                sent = time.monotonic()
                try:
                    answers = client.classify([COLOURS[colour] for colour in colours])
                    errors = [answer.error for answer in answers if answer.error is not None]
                    if errors:
                        raise errors[0]
                except UnavailableError:
                    self.refused.append(sent)
                    refusals += 1
                    continue
                except VistazoError as error:
                    self.wrong.append(repr(error))
                    return
                if [answer.top.label for answer in answers] != colours:
                    self.wrong.append(f"asked {colours}, got {answers}")
                self.answered += 1
                self.warm.release()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_was_accepted_is_answered_and_what_comes_later_is_unavailable(loaded_models, seed):
    chance = random.Random(seed)
    with server_process(loaded_models, "--max-batch-size", "4", "--threads", "1") as server:
        load = Load(server.address)
        load.start(seed)
        time.sleep(chance.uniform(0, 0.3))  # some moment of the load
        before = time.monotonic()
        server.terminate()
        status = server.wait()
        load.join()

    assert load.wrong == []
    assert load.answered >= CALLERS
    # One caller at a time on each connection: what had arrived when the signal came was accepted.
    assert [sent - before for sent in load.refused if sent < before - ARRIVAL_SECONDS] == []
    assert status == 0
    events = [line["event"] for line in server.log]
    # Between the two, latecomers may have been told to go elsewhere.
    assert [event for event in events if event != "request_failed"][-2:] == ["draining", "stopped"]
    assert "request_crashed" not in events
    assert "Traceback" not in "".join(server.other_output)


def test_all_of_a_long_queue_is_answered_before_the_process_ends(loaded_models):
    with (
        server_process(loaded_models, "--max-batch-size", "1", "--threads", "1") as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
    ):
        stub = pb_grpc.ClassificationServiceStub(channel)
        names = list(COLOURS) * 10
        futures = [
            stub.Classify.future(pb.ClassifyRequest(images=[raw(COLOURS[name])]), timeout=PATIENCE_SECONDS)
            for name in names
        ]
        # The first is answered, so all thirty have arrived: they came in order on one connection.
        futures[0].result()
        # A call on the same connection that is answered at once.
        stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_SECONDS)
        server.terminate()
        answers = [future.result() for future in futures]
        assert server.wait() == 0

    assert [labels(answer.results[0])[0] for answer in answers] == names


def test_an_open_stream_is_answered_before_the_process_ends(loaded_models):
    with (
        server_process(loaded_models, "--max-batch-size", "1", "--threads", "1") as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
    ):
        stub = pb_grpc.ClassificationServiceStub(channel)
        names = {f"{number}-{name}": name for number, name in enumerate(list(COLOURS) * 5)}
        requests = [
            pb.ClassifyStreamRequest(id=key, request=pb.ClassifyRequest(images=[raw(COLOURS[name])]))
            for key, name in names.items()
        ]
        stream = stub.ClassifyStream(iter(requests), timeout=PATIENCE_SECONDS)
        answers = [next(stream)]
        server.terminate()
        answers += list(stream)
        assert stream.code() is grpc.StatusCode.OK  # it was its caller who ended it
        assert server.wait() == 0

    assert {answer.id: labels(answer.response.results[0])[0] for answer in answers} == names


class OpenStream:
    """A stream that its caller does not end, until the test does."""

    def __init__(self, method, requests) -> None:
        self.release = threading.Event()
        self.sent = 0
        self.call = method(self._requests(requests), timeout=2 * PATIENCE_SECONDS)

    def _requests(self, requests):
        for request in requests:
            self.sent += 1
            yield request
            if self.release.is_set():
                return
        self.release.wait(2 * PATIENCE_SECONDS)

    def rest(self):
        """Return the answers that still come, and the error that ends the stream."""
        answers = []
        with pytest.raises(grpc.RpcError) as failed:
            answers.extend(self.call)
        self.release.set()
        return answers, failed.value


def endings(server: ServerProcess) -> list[tuple[str, str]]:
    """Return how the RPCs that failed ended, by the server's own account."""
    return [(line["code"], line["reason"]) for line in server.log if line["event"] == "request_failed"]


def ask(key: str, colour: str = "red") -> pb.ClassifyStreamRequest:
    return pb.ClassifyStreamRequest(id=key, request=pb.ClassifyRequest(images=[raw(COLOURS[colour])]))


def open_classify(channel):
    stream = OpenStream(pb_grpc.ClassificationServiceStub(channel).ClassifyStream, [ask("only")])
    assert next(stream.call).id == "only"
    return stream


def open_infer(channel):
    request = open_inference_pb2.ModelInferRequest(id="only", model_name="nobody")
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    stream = OpenStream(stub.ModelStreamInfer, [request])
    assert next(stream.call).infer_response.id == "only"
    return stream


def open_reflection(channel):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stream = OpenStream(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo, [request])
    assert next(stream.call).list_services_response.service
    return stream


@pytest.mark.parametrize("delay", ["0", "0.2"])
@pytest.mark.parametrize("open_stream", [open_classify, open_infer, open_reflection])
def test_a_stream_on_which_nothing_comes_ends_with_the_drain_and_does_not_hold_it(models, open_stream, delay):
    flags = ["--grace-seconds", "30", "--drain-delay-seconds", delay, "--log-level", "debug"]
    with (
        server_process(models, *flags) as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
    ):
        stream = open_stream(channel)
        began = time.monotonic()
        server.terminate()
        answers, error = stream.rest()

        assert server.wait() == 0
        assert time.monotonic() - began < 15  # half of the grace, which it does not sit out
    assert answers == []
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert endings(server) == [("UNAVAILABLE", "the server is about to end; ask another")]
    assert "Traceback" not in "".join(server.other_output)


@pytest.mark.parametrize("delay", ["0", "0.2"])
def test_a_busy_stream_is_read_no_further_and_what_was_read_is_answered(loaded_models, delay):
    flags = [
        "--max-batch-size",
        "1",
        "--threads",
        "1",
        "--drain-delay-seconds",
        delay,
        "--log-level",
        "debug",
    ]
    colours = list(COLOURS)
    with (
        server_process(loaded_models, *flags) as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
    ):
        # More than the server reads ahead, as fast as it takes them.
        requests = (ask(str(number), colours[number % 3]) for number in count())
        stream = OpenStream(pb_grpc.ClassificationServiceStub(channel).ClassifyStream, requests)
        wait_for_requests(server, REQUESTS_IN_FLIGHT // 2)
        server.terminate()
        answers, error = stream.rest()

        assert server.wait() == 0
    # Of one that still writes when the connection goes, grpc may tell that and not the server's reason.
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert endings(server) == [("UNAVAILABLE", "the server is about to end; ask another")]
    # Read in order, so what was read is what came first: each of them is answered, and only they.
    assert sorted(int(answer.id) for answer in answers) == list(range(len(answers)))
    assert REQUESTS_IN_FLIGHT // 2 <= len(answers) < stream.sent
    assert all(labels(answer.response.results[0])[0] == colours[int(answer.id) % 3] for answer in answers)
    events = [line["event"] for line in server.log]
    assert "request_crashed" not in events
    assert "Traceback" not in "".join(server.other_output)


def test_a_server_without_requests_ends_at_once_though_clients_are_connected(loaded_models):
    with (
        server_process(loaded_models, "--grace-seconds", "30") as server,
        Client(server.address) as client,
    ):
        assert client.health()
        began = time.monotonic()
        server.terminate()

        assert server.wait() == 0
        assert time.monotonic() - began < 15  # half of the grace, which it does not sit out
        with pytest.raises(UnavailableError):
            client.classify(COLOURS["red"])


def test_requests_that_outlast_the_grace_do_not_hold_the_process(slow_models):
    with (
        server_process(
            slow_models, "--max-batch-size", "1", "--threads", "1", "--grace-seconds", "0.5"
        ) as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
    ):
        request = many_runs(channel)
        wait_for_requests(server)
        server.terminate()

        assert server.wait() == 0
        # It was not waited for: it would have been answered.
        with pytest.raises(grpc.RpcError) as failed:
            request.result(PATIENCE_SECONDS)
    assert failed.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert "Traceback" not in "".join(server.other_output)


def test_with_a_drain_delay_it_goes_on_serving_while_health_says_not_serving(loaded_models):
    with (
        server_process(loaded_models, "--drain-delay-seconds", "2") as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
        Client(server.address) as client,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS
        )
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        server.terminate()
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING

        assert client.classify(COLOURS["green"]).top.label == "green"
        assert not client.health()
        assert not client.health("tiny")
        # A new connection is taken, too.
        with Client(server.address) as late:
            assert late.classify(COLOURS["blue"]).top.label == "blue"
        watching.cancel()
        assert server.wait() == 0


def test_who_watches_its_health_does_not_hold_the_process(loaded_models):
    with (
        server_process(loaded_models, "--grace-seconds", "30") as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
    ):
        watching = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=2 * PATIENCE_SECONDS
        )
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        began = time.monotonic()
        server.terminate()
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING

        assert server.wait() == 0
        assert time.monotonic() - began < 15  # half of the grace


def test_a_signal_while_models_load_ends_the_process_cleanly(tmp_path):
    write_model(tmp_path, model=tiny_model(cost=1000))
    with server_process(tmp_path, ready=False) as server:
        server.terminate()

        assert server.wait() == 0
    assert server.log[-1]["event"] == "stopped"
    assert "Traceback" not in "".join(server.other_output)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(slow_models, first, second):
    with (
        server_process(slow_models, "--max-batch-size", "1", "--threads", "1") as server,
        grpc.insecure_channel(server.address, options=NO_PROXY) as channel,
    ):
        request = many_runs(channel)
        wait_for_requests(server)
        server.process.send_signal(first)
        server.wait_for("draining")
        assert not request.done()
        server.process.send_signal(second)

        assert server.wait() == 128 + second
        # It was in flight still, and the process did not wait for it: it would have been answered.
        with pytest.raises(grpc.RpcError) as failed:
            request.result(PATIENCE_SECONDS)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [(line["event"], line.get("signal")) for line in server.log[-2:]] == [
        ("draining", None),
        ("stopped_at_once", second.name),
    ]
    assert "Traceback" not in "".join(server.other_output)


def many_runs(channel):
    """Send a request of many runs, a fifth of a second each: it takes longer than any test waits for."""
    return pb_grpc.ClassificationServiceStub(channel).Classify.future(
        pb.ClassifyRequest(images=[raw(COLOURS["red"])] * 250), timeout=1000
    )


def wait_for_requests(server: ServerProcess, wanted: int = 1) -> None:
    """Return once the metrics endpoint tells of so many requests in flight."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with opener.open(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as response:
            text = response.read().decode()
        if float(text.partition(IN_FLIGHT)[2].partition("\n")[0]) >= wanted:
            return
    raise AssertionError("the requests did not come")

"""A client's life and deadlines, and the calls that are not `classify`."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from vistazo_client import (
    BatchLatency,
    Client,
    DeadlineExceededError,
    ModelNotFoundError,
    ModelState,
    RequestCancelledError,
    UnavailableError,
    UnsupportedError,
)
from vistazo_client._codec import IMAGES_PER_REQUEST, decode_model
from vistazo_client.results import ModelInfo, ScoreKind
from vistazo_proto import classification_pb2 as pb


def test_models_come_as_plain_records_in_the_servers_order(client):
    lenet, resnet, vgg = client.models()

    assert (lenet.name, lenet.untrained, resnet.untrained) == ("lenet", True, False)
    assert resnet == ModelInfo(
        name="resnet18",
        version="1",
        state=ModelState.READY,
        input_height=224,
        input_width=224,
        input_channels=3,
        labels=("cat", "dog"),
        weights="pretrained",
        precision="fp32",
        max_batch_size=8,
        device="cpu",
        latencies=(BatchLatency(1, 0.02), BatchLatency(8, 0.1)),
        scores=ScoreKind.INDEPENDENT_LOGITS,
    )
    assert resnet.ready
    assert (vgg.state, vgg.ready, vgg.reason) == (ModelState.FAILED, False, "checksum does not match")


def test_one_model_is_had_by_name(client):
    assert client.model("resnet18", "1").labels == ("cat", "dog")


def test_a_model_that_is_not_there_is_not_found(client):
    with pytest.raises(ModelNotFoundError, match="no model 'resnet81'"):
        client.model("resnet81")


@pytest.mark.parametrize("number", [pb.STATE_UNSPECIFIED, 99])
def test_a_state_that_this_client_does_not_know_is_unknown(number):
    assert decode_model(pb.Model(name="m", state=number)).state is ModelState.UNKNOWN


@pytest.mark.parametrize("serving", [True, False])
def test_health_is_what_the_standard_service_says(client, server, serving):
    server.set_serving("", serving=serving)
    server.set_serving("resnet18", serving=not serving)

    assert client.health() is serving
    assert client.health("resnet18") is not serving


def test_health_of_an_unknown_model_is_not_found(client, server):
    with pytest.raises(ModelNotFoundError, match=f"the server at {server.address} has no model 'resnet81'"):
        client.health("resnet81")


def test_waiting_for_a_ready_server_returns_at_once(client, server):
    server.set_serving("resnet18", serving=True)
    client.wait_until_ready("resnet18", timeout=5)


def test_waiting_outlasts_a_server_that_starts_and_a_model_that_loads(nobody, starting_server):
    ready = threading.Event()
    with Client(nobody) as client:
        waiting = threading.Thread(target=lambda: (client.wait_until_ready("lenet", timeout=20), ready.set()))
        waiting.start()
        assert not ready.wait(0.2)
        server = starting_server()
        server.set_serving("lenet", serving=False)
        assert not ready.wait(0.2)
        server.set_serving("lenet", serving=True)
        assert ready.wait(10)
        waiting.join()


def test_waiting_in_vain_ends_in_time_and_says_what_was_missing(client, server):
    server.set_serving("vgg16", serving=False)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"^not ready after 0.3 s: vgg16 is not serving$"):
        client.wait_until_ready("vgg16", timeout=0.3)

    assert time.monotonic() - started < 1.5


def test_waiting_for_no_server_in_vain_says_so(nobody):
    with (
        Client(nobody) as client,
        pytest.raises(DeadlineExceededError, match=f"0.2 s: no server at {nobody}"),
    ):
        client.wait_until_ready(timeout=0.2)


def test_a_server_that_never_answers_is_given_up_at_the_timeout(client, server):
    server.never_answer()
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=f"^no answer from {server.address} within 0.2 s$"):
        client.classify(b"a cat", timeout=0.2)

    assert 0.2 <= time.monotonic() - started < 1.5


def test_the_clients_own_timeout_holds_where_a_call_gives_none(server):
    server.never_answer()
    with Client(server.address, timeout=0.2) as client, pytest.raises(DeadlineExceededError):
        client.classify(b"a cat")


def test_every_call_carries_a_deadline(client, server):
    left = []
    server.service.script = lambda request, context: left.append(context.time_remaining())
    client.classify([b"a cat"] * (IMAGES_PER_REQUEST + 1))
    client.classify(b"a cat", timeout=100)

    # The deadline travels in whole units that grpc rounds up.
    assert all(0 < seconds < 6 for seconds in left[:2])
    assert 50 < left[2] < 101


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_is_no_time_is_refused(client, timeout):
    with pytest.raises(ValueError, match="expected a timeout above 0 seconds"):
        Client(timeout=timeout)
    with pytest.raises(ValueError, match="expected a timeout above 0 seconds"):
        client.models(timeout=timeout)


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:8001", "https://example.org"])
def test_an_address_that_is_a_url_is_refused(address):
    with pytest.raises(ValueError, match="expected the server's address as HOST:PORT"):
        Client(address)


def test_making_a_client_connects_to_nothing(nobody):
    Client(nobody).close()


def test_a_closed_client_refuses_every_call(client):
    client.classify(b"a cat")
    client.close()
    client.close()

    for call in (
        lambda: client.classify(b"a cat"),
        lambda: client.classify_iter([b"a cat"]),
        client.models,
        lambda: client.model("resnet18"),
        client.health,
        client.__enter__,
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert repr(client) == f"<Client {client.address} closed>"


def test_closing_ends_the_calls_that_other_threads_are_in(server):
    asked = threading.Event()
    server.service.script = lambda request, context: (asked.set(), server.stopping.wait(30))
    client = Client(server.address)
    raised = []

    def ask():
        try:
            client.classify(b"a cat")
        except RequestCancelledError as error:
            raised.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    assert asked.wait(5)
    client.close()
    caller.join(5)

    assert len(raised) == 1


def test_closing_ends_the_streams_that_other_threads_are_in(server):
    server.service.stream_script = lambda request, context: server.stopping.wait(30) and None
    client = Client(server.address)
    raised = []

    def ask():
        try:
            list(client.classify_stream([(1, b"a cat")]))
        except RequestCancelledError as error:
            raised.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    while not server.service.stream_requests:
        server.stopping.wait(0.01)
    client.close()
    caller.join(5)

    assert len(raised) == 1


def test_one_client_serves_many_threads_each_with_its_own_answers(client):
    wrong = []

    def ask(name):
        for number in range(20):
            label = f"{name} {number}"
            if client.classify(label.encode()).top.label != label:
                wrong.append(label)

    threads = [threading.Thread(target=ask, args=(f"thread {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_a_client_finds_its_server_again_after_a_restart(nobody, starting_server):
    with Client(nobody) as client:
        with pytest.raises(UnavailableError):
            client.classify(b"a cat")
        server = starting_server()
        server.set_serving("", serving=True)
        client.wait_until_ready(timeout=10)

        assert client.classify(b"a cat").top.label == "a cat"


def test_a_grpc_server_that_is_no_vistazo_is_recognised(nobody):
    stranger = grpc.server(ThreadPoolExecutor(1))
    stranger.add_insecure_port(nobody)
    stranger.start()
    with Client(nobody) as client, pytest.raises(UnsupportedError, match="is it a Vistazo server"):
        client.classify(b"a cat")
    stranger.stop(None).wait()


def test_the_server_sees_who_calls(client, server):
    seen = {}
    server.service.script = lambda request, context: seen.update(dict(context.invocation_metadata()))
    client.classify(b"a cat")

    assert seen["user-agent"].startswith("vistazo-python/")

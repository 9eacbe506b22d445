"""Loading, unloading and replacing models, after tests of Triton's qa/L0_lifecycle and others.

The server is started with --model-control explicit and one model, "scaled", loaded: OUTPUT0 is INPUT0
times the number of the version. "simple" lies in the repository and is not loaded.
"""

import threading

import numpy as np
import pytest
from tritonclient.grpc import aio, service_pb2

from support.graphs import write_graph
from support.onnx_zoo import scaled

READY, UNAVAILABLE = "READY", "UNAVAILABLE"
ONES = np.ones((1, 4), np.float32)


@pytest.fixture
def ask(client, tensor):
    """Return the version that answers, as the number that it multiplies with."""

    def factor(name="scaled", **options):
        return float(client.infer(name, [tensor(ONES)], **options).as_numpy("OUTPUT0")[0, 0])

    return factor


@pytest.fixture
def states(client):
    """Return the state of each model in the index."""
    return lambda: {model.name: model.state for model in client.get_model_repository_index().models}


@pytest.fixture
def fresh(server, client):
    """Return the name of a model of the test's own, loaded at version 1."""
    names = []

    def make(name):
        write_graph(server.models, name, scaled(1))
        client.load_model(name)
        names.append(name)
        return name

    yield make
    for name in names:
        client.unload_model(name)


def write_broken(server, name, version):
    folder = server.models / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"not ONNX")


def test_only_what_was_named_is_loaded_at_the_start(client, ask, states):
    """L0_lifecycle: LifeCycleTest.test_model_control, --load-model."""
    assert (states()["scaled"], states()["simple"]) == (READY, UNAVAILABLE)
    assert client.is_model_ready("scaled")
    assert not client.is_model_ready("simple")
    assert ask() == 1


def test_a_model_that_is_not_loaded_does_not_answer(client, tensor, refusal):
    """L0_lifecycle: LifeCycleTest.test_model_control, infer before load."""
    a = np.ones((1, 16), np.int32)
    error = refusal(client.infer, "simple", [tensor(a, "INPUT0"), tensor(a, "INPUT1")])

    assert error.status() in {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"}
    assert "simple" in error.message()


def test_load_infer_unload_and_load_again(client, tensor, refusal, states):
    """L0_lifecycle: LifeCycleTest.test_model_control."""
    a = np.ones((1, 16), np.int32)
    inputs = [tensor(a, "INPUT0"), tensor(a, "INPUT1")]
    for _ in range(2):
        client.load_model("simple")
        assert client.is_model_ready("simple")
        assert states()["simple"] == READY
        assert np.array_equal(client.infer("simple", inputs).as_numpy("OUTPUT0"), a + a)
        client.unload_model("simple")
        assert not client.is_model_ready("simple")
        assert states()["simple"] == UNAVAILABLE
        refusal(client.infer, "simple", inputs)


def test_the_index_can_be_of_what_is_ready_alone(stub):
    """L0_lifecycle: the index with `ready`."""
    index = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))

    assert "scaled" in {model.name for model in index.models}
    assert {model.state for model in index.models} == {READY}


@pytest.mark.parametrize("name", ["foo", "..", "../scaled", "", "scaled/1", "a\nb"])
def test_what_is_no_model_cannot_be_loaded(client, refusal, ask, name):
    """L0_lifecycle: LifeCycleTest.test_model_control_fail; L0_input_validation: traversal in names."""
    error = refusal(client.load_model, name)

    assert error.status() in {
        "StatusCode.NOT_FOUND",
        "StatusCode.INVALID_ARGUMENT",
        "StatusCode.FAILED_PRECONDITION",
    }
    assert "\n" not in error.message()
    assert ask() == 1


def test_what_is_no_model_cannot_be_unloaded(client, refusal):
    """L0_lifecycle: LifeCycleTest.test_model_control_fail, unload."""
    assert "foo" in refusal(client.unload_model, "foo").message()


def test_a_new_version_takes_over(server, client, ask, fresh):
    """L0_lifecycle: LifeCycleTest.test_dynamic_version_load_unload."""
    name = fresh("growing")
    assert ask(name) == 1
    write_graph(server.models, name, scaled(2), version=2)
    assert ask(name) == 1
    client.load_model(name)

    assert ask(name) == 2
    assert list(client.get_model_metadata(name).versions) == ["2"]


def test_a_version_that_is_gone_is_not_found(server, client, tensor, refusal, fresh):
    """L0_lifecycle: LifeCycleTest.test_dynamic_version_load_unload, the old version by its number."""
    name = fresh("replaced")
    write_graph(server.models, name, scaled(2), version=2)
    client.load_model(name)
    error = refusal(client.infer, name, [tensor(ONES)], model_version="1")

    assert error.status() == "StatusCode.NOT_FOUND"


def test_a_version_that_fails_leaves_the_old_one_serving(server, client, ask, refusal, fresh):
    """L0_lifecycle: LifeCycleTest.test_model_reload_fail."""
    name = fresh("careful")
    write_broken(server, name, 2)
    error = refusal(client.load_model, name)

    assert name in error.message()
    assert ask(name) == 1
    assert client.is_model_ready(name)


def test_a_model_that_never_worked_says_why(server, client, refusal):
    """L0_lifecycle: LifeCycleTest.test_parse_error_modelfail."""
    write_broken(server, "broken", 1)
    error = refusal(client.load_model, "broken")
    (entry,) = [m for m in client.get_model_repository_index().models if m.name == "broken"]

    assert "broken" in error.message()
    assert entry.state == UNAVAILABLE
    assert entry.reason
    assert not client.is_model_ready("broken")
    assert client.is_server_ready()


def test_no_request_fails_while_versions_change(server, client, ask, fresh):
    """L0_lifecycle: LifeCycleTest.test_model_availability_on_reload."""
    name = fresh("available")
    stop, answers, errors = threading.Event(), [], []

    def call():
        while not stop.is_set():
            try:
                answers.append(ask(name))
            except Exception as error:  # noqa: BLE001 - shown below
                errors.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for version in range(2, 8):
        write_graph(server.models, name, scaled(version), version=version)
        client.load_model(name)
    stop.set()
    for caller in callers:
        caller.join()

    assert errors == []
    assert set(answers) <= set(range(1, 8))
    assert ask(name) == 7


def test_loads_and_unloads_that_cross(client, states, ask, fresh):
    """L0_lifecycle: LifeCycleTest.test_concurrent_model_load_unload."""
    name = fresh("contested")
    errors = []

    def repeat(action):
        for _ in range(5):
            try:
                action(name)
            except Exception as error:  # noqa: BLE001 - shown below
                errors.append(error)

    threads = [
        threading.Thread(target=repeat, args=(action,))
        for action in (client.load_model, client.unload_model, client.load_model)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.load_model(name)

    assert errors == []
    assert states()[name] == READY
    assert ask(name) == 1


def test_what_was_accepted_is_answered_before_an_unload_ends(client, tensor, inbox, fresh):
    """L0_lifecycle: LifeCycleTest.test_unload_in_flight, requests of before the unload are answered."""
    name = fresh("leaving")
    for _ in range(20):
        client.async_infer(name, [tensor(ONES)], inbox.callback)
    client.unload_model(name)
    outcomes = [inbox.items.get(timeout=60) for _ in range(20)]

    for result, error in outcomes:
        # One that arrived after the unload began is refused; none hangs, and none is lost.
        assert result is not None or error.status() in {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"}
    client.load_model(name)


def test_loads_and_unloads_keep_their_time(client, server, refusal, ask, fresh):
    """L0_client_timeout: ClientNonInferTimeoutTest.test_grpc_load_model and test_grpc_unload_model."""
    name = fresh("timed")
    for method in (client.unload_model, client.load_model):
        with server.frozen():
            assert refusal(method, name, client_timeout=0.2).status() == "StatusCode.DEADLINE_EXCEEDED"
    client.unload_model(name, client_timeout=60)
    client.load_model(name, client_timeout=60)

    assert ask(name) == 1


def test_a_configuration_of_the_callers_own_is_refused(client, refusal, ask):
    """L0_lifecycle: LifeCycleTest.test_config_override and test_file_override_security."""
    for options in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"not ONNX"}}):
        error = refusal(client.load_model, "scaled", **options)

        assert error.status() in {"StatusCode.INVALID_ARGUMENT", "StatusCode.UNIMPLEMENTED"}
    assert ask() == 1


def test_statistics_go_on_over_a_reload(client, tensor, fresh, ask):
    """L0_server_status: statistics of a model that is loaded again are still there."""
    name = fresh("counted")
    ask(name)
    client.load_model(name)
    (stats,) = client.get_inference_statistics(name).model_stats

    assert stats.name == name
    assert stats.inference_stats.success.count in {0, 1}
    ask(name)
    assert client.get_inference_statistics(name).model_stats[0].inference_stats.success.count >= 1


async def test_the_asyncio_client_loads_and_unloads(server):
    """L0_grpc: the aio client's repository calls."""
    write_graph(server.models, "async", scaled(1))
    async with aio.InferenceServerClient(server.address) as client:
        await client.load_model("async")
        assert await client.is_model_ready("async")
        await client.unload_model("async")
        assert not await client.is_model_ready("async")

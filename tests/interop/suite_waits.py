"""Timeouts, cancellation, full queues and what they leave behind, after tests of Triton's qa/.

The model "slow" keeps the engine busy for a good part of a second a sample, one at a time; at most
QUEUE_LIMIT samples wait for it.
"""

import asyncio

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, aio

QUEUE_LIMIT = 4

LATE = "StatusCode.DEADLINE_EXCEEDED"

LATE_OR_REFUSED = {LATE, "StatusCode.RESOURCE_EXHAUSTED"}
"""This server also refuses at the door what it predicts to be late."""

PIXELS = np.zeros((1, 4, 4, 3), np.uint8)
PIXELS[..., 1] = 200


@pytest.fixture
def image(tensor):
    return [tensor(PIXELS, "images")]


@pytest.fixture
def in_flight(metric):
    return lambda: metric("vistazo_inference_in_flight_requests", model="slow")


@pytest.fixture
def queued(metric):
    return lambda: metric("vistazo_inference_queue_samples", model="slow")


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(in_flight, queued, until, client, image):
    """L0_grpc_state_cleanup: after each test all requests are gone, and the server answers."""
    yield
    until(lambda: in_flight() == 0 and queued() == 0)
    assert client.infer("slow", image).as_numpy("logits").argmax() == 1


@pytest.fixture
def occupied(server, image, in_flight, queued, until, new_inbox):
    """Two requests that keep the engine busy: one runs, the next is formed. Neither may fail."""
    inbox = new_inbox()
    with InferenceServerClient(server.address) as other:
        for number in (1, 2):
            other.async_infer("slow", image, inbox.callback)
            until(lambda number=number: in_flight() == number and queued() == 0)
        yield
        for _ in (1, 2):
            assert inbox.result().as_numpy("logits").argmax() == 1


def test_infer_in_too_little_and_in_enough_time(client, server, image, refusal):
    """L0_client_timeout: ClientInferTimeoutTest.test_grpc_infer."""
    assert refusal(client.infer, "slow", image, client_timeout=0.02).status() in LATE_OR_REFUSED
    with server.frozen():
        assert refusal(client.infer, "slow", image, client_timeout=0.2).status() == LATE

    assert client.infer("slow", image, client_timeout=60).as_numpy("logits").argmax() == 1


def test_infer_by_callback_in_too_little_and_in_enough_time(client, server, image, inbox):
    """L0_client_timeout: ClientInferTimeoutTest.test_grpc_async_infer."""
    with server.frozen():
        client.async_infer("slow", image, inbox.callback, client_timeout=0.2)
        assert inbox.error().status() == LATE
    client.async_infer("slow", image, inbox.callback, client_timeout=60)

    assert inbox.result().as_numpy("logits").argmax() == 1


def test_a_stream_whose_time_is_up(client, server, image, inbox):
    """L0_client_timeout: ClientInferTimeoutTest.test_grpc_stream_infer."""
    with server.frozen():
        client.start_stream(inbox.callback, stream_timeout=0.2)
        client.async_stream_infer("slow", image)
        assert inbox.error().status() == LATE
    client.stop_stream()
    client.start_stream(inbox.callback, stream_timeout=60)
    client.async_stream_infer("slow", image)

    assert inbox.result().as_numpy("logits").argmax() == 1
    client.stop_stream()


def test_a_stream_ends_with_its_time_though_answers_come(client, image, inbox):
    """L0_grpc_state_cleanup: CleanUpTest.test_decoupled_timeout."""
    client.start_stream(inbox.callback, stream_timeout=0.5)
    client.async_stream_infer("slow", image)
    error = None
    while error is None or error.status() != LATE:
        _, error = inbox.items.get(timeout=60)
    client.stop_stream()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("is_server_live", ()),
        ("is_server_ready", ()),
        ("is_model_ready", ("slow",)),
        ("get_server_metadata", ()),
        ("get_model_metadata", ("slow",)),
        ("get_model_config", ("slow",)),
        ("get_model_repository_index", ()),
        ("get_inference_statistics", ("slow",)),
    ],
)
def test_every_other_call_keeps_its_time(client, server, refusal, method, arguments):
    """L0_client_timeout: ClientNonInferTimeoutTest.test_grpc_*."""
    with server.frozen():
        assert refusal(getattr(client, method), *arguments, client_timeout=0.2).status() == LATE

    assert getattr(client, method)(*arguments, client_timeout=60)


def test_other_calls_are_answered_while_the_engine_is_busy(client, occupied, in_flight):
    """L0_lifecycle: the server answers what needs no engine at once, whatever runs."""
    assert client.is_server_ready(client_timeout=30)
    assert client.get_model_metadata("slow", client_timeout=30).name == "slow"
    assert in_flight() > 0


def test_a_queued_callback_request_is_cancelled(client, image, inbox, occupied, queued, until):
    """L0_request_cancellation: GrpcCancellationTest.test_grpc_async_infer; it leaves the queue at once."""
    future = client.async_infer("slow", image, inbox.callback)
    until(lambda: queued() == 1)
    future.cancel()

    assert "Locally cancelled" in inbox.error().message()
    until(lambda: queued() == 0)


def test_a_stream_is_cancelled_with_what_it_waits_for(client, image, inbox, occupied, queued, until):
    """L0_request_cancellation: GrpcCancellationTest.test_grpc_stream_infer."""
    client.start_stream(inbox.callback)
    client.async_stream_infer("slow", image)
    until(lambda: queued() == 1)
    client.stop_stream(cancel_requests=True)

    assert "Locally cancelled" in inbox.error().message()
    until(lambda: queued() == 0)


async def test_a_task_of_asyncio_is_cancelled(server, image, occupied, queued, until):
    """L0_request_cancellation: GrpcCancellationTest.test_aio_grpc_async_infer."""
    async with aio.InferenceServerClient(server.address) as client:
        task = asyncio.create_task(client.infer("slow", image))
        while queued() == 0:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        until(lambda: queued() == 0)


async def test_a_stream_of_asyncio_is_cancelled(server, image, occupied, queued, until):
    """L0_request_cancellation: GrpcCancellationTest.test_aio_grpc_stream_infer."""

    async def requests():
        yield {"model_name": "slow", "inputs": image}
        await asyncio.Event().wait()

    async with aio.InferenceServerClient(server.address) as client:
        stream = client.stream_infer(requests())
        reading = asyncio.create_task(anext(stream))
        while queued() == 0:
            await asyncio.sleep(0.01)
        assert stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        until(lambda: queued() == 0)


def test_a_request_that_runs_is_cancelled_alone(client, image, inbox, in_flight, until, metric):
    """L0_request_cancellation: GrpcCancellationTest, cancellation before the answer is finished."""
    before = metric("vistazo_inference_requests_total", model="slow", outcome="cancelled")
    future = client.async_infer("slow", image, inbox.callback)
    until(lambda: in_flight() == 1)
    client.async_infer("slow", image, inbox.callback, request_id="stranger")
    future.cancel()

    assert "Locally cancelled" in inbox.error().message()
    assert inbox.result().get_response().id == "stranger"
    until(lambda: metric("vistazo_inference_requests_total", model="slow", outcome="cancelled") == before + 1)


def test_the_excess_is_refused_at_once(client, server, image, inbox, occupied):
    """L0_model_queue: ModelQueueTest.test_max_queue_size."""
    sent = 20
    # All are there when the server looks, however slowly this process sends them.
    with server.frozen():
        for _ in range(sent):
            client.async_infer("slow", image, inbox.callback)
    outcomes = [inbox.items.get(timeout=60) for _ in range(sent)]
    errors = [error for _, error in outcomes if error is not None]

    # A place more for each of the two runs that may end meanwhile.
    assert QUEUE_LIMIT <= sent - len(errors) <= QUEUE_LIMIT + 2
    assert {error.status() for error in errors} == {"StatusCode.RESOURCE_EXHAUSTED"}
    # The first to be answered are those that were turned away.
    assert all(error is not None for _, error in outcomes[: sent - QUEUE_LIMIT - 4])


def test_a_request_may_give_itself_less_time(client, image, refusal, occupied):
    """L0_model_queue: ModelQueueTest.test_timeout_override, the request's own timeout in microseconds."""
    assert refusal(client.infer, "slow", image, timeout=20_000).status() in LATE_OR_REFUSED


def test_a_request_of_more_samples_than_may_wait(
    client, tensor, image, inbox, refusal, occupied, queued, until
):
    """L0_model_queue: the queue's size is of samples; a large request behind a small one is the excess."""
    for _ in range(QUEUE_LIMIT - 1):
        client.async_infer("slow", image, inbox.callback)
    until(lambda: queued() >= 2)
    many = [tensor(np.repeat(PIXELS, QUEUE_LIMIT, axis=0), "images")]

    assert refusal(client.infer, "slow", many).status() == "StatusCode.RESOURCE_EXHAUSTED"
    for _ in range(QUEUE_LIMIT - 1):
        assert inbox.result().as_numpy("logits").argmax() == 1


def test_the_gauge_of_what_waits_rises_and_falls_to_zero(
    client, server, image, inbox, occupied, queued, until
):
    """L0_metrics: MetricsPendingRequestCountTest.test_pending_request_count_metric."""
    assert queued() == 0
    with server.frozen():
        for _ in range(3):
            client.async_infer("slow", image, inbox.callback)
    until(lambda: queued() >= 2)
    for _ in range(3):
        inbox.result()

    assert queued() == 0


def test_clients_that_vanish_leave_nothing(server, image, in_flight, until, new_inbox):
    """L0_grpc_state_cleanup: CleanUpTest.test_decoupled_cancellation, a closed channel."""
    for _ in range(3):
        client = InferenceServerClient(server.address)
        client.async_infer("slow", image, new_inbox().callback)
        client.close()
    until(lambda: in_flight() == 0)


def test_errors_leave_nothing(client, tensor, inbox, in_flight):
    """L0_grpc_state_cleanup: CleanUpTest.test_decoupled_error_status, on calls and on a stream."""
    bad = [tensor(np.zeros((1, 3), np.uint8), "images")]
    client.start_stream(inbox.callback)
    for _ in range(20):
        client.async_infer("slow", bad, inbox.callback)
        client.async_stream_infer("slow", bad)
    for _ in range(40):
        inbox.error()
    client.stop_stream()

    assert in_flight() == 0


def test_a_model_that_waits_does_not_hold_up_the_client(client, tensor, occupied):
    """L0_simple_example beside a busy model: another model's answer comes, in its turn."""
    a = np.ones((1, 16), np.int32)
    result = client.infer("simple", [tensor(a, "INPUT0"), tensor(a, "INPUT1")], client_timeout=60)

    assert np.array_equal(result.as_numpy("OUTPUT0"), a + a)

"""What `classify` sends and returns, for one image and for many."""

import threading

import grpc
import numpy as np
import pytest

from vistazo_client import (
    Client,
    InvalidImageError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerError,
    Timing,
    UnavailableError,
)
from vistazo_client._codec import IMAGES_PER_REQUEST
from vistazo_client.client import MAX_REQUESTS_IN_FLIGHT
from vistazo_proto import classification_pb2 as pb


def labels(results):
    return [result.top.label for result in results]


def numbered(count):
    return [b"image %d" % number for number in range(count)]


def test_the_answer_carries_predictions_model_and_times(client):
    result = client.classify(b"a cat", model="resnet18", version="3", top_k=2)

    assert [(each.index, each.label, each.probability) for each in result.predictions] == [
        (7, "a cat", 0.5),
        (2, "class 2", 0.25),
    ]
    assert result.top == result.predictions[0]
    assert (result.model, result.version, result.batch_size) == ("resnet18", "3", 1)
    assert result.timing == Timing(queue_seconds=0.25, preprocess_seconds=0.5, compute_seconds=1.0)
    assert result.error is None


def test_what_was_not_asked_for_is_left_to_the_server(client, server):
    client.classify(b"a cat")

    (request,) = server.service.requests
    assert (request.model, request.version, request.HasField("top_k")) == ("", "", False)
    assert not request.HasField("min_probability")


def test_predictions_below_a_threshold_are_left_out(client):
    result = client.classify(b"a cat", min_probability=0.25)

    assert [each.probability for each in result.predictions] == [0.5, 0.25]


def test_an_image_may_have_no_predictions_and_that_is_no_error(client):
    one = client.classify(b"a cat", min_probability=1)
    several = client.classify([b"a cat", b"bad", b"a dog"], min_probability=0.9)

    assert [result.error is None for result in (one, *several)] == [True, True, False, True]
    for result in (one, several[0], several[2]):
        assert result.predictions == ()
        result.raise_for_error()
        with pytest.raises(LookupError, match="no class reached min_probability"):
            _ = result.top


@pytest.mark.parametrize("least", [float("nan"), -0.1, 1.5, float("inf"), 2])
def test_a_threshold_that_is_no_probability_is_refused(client, server, least):
    with pytest.raises(InvalidRequestError, match="min_probability: expected 0 to 1, got"):
        client.classify(b"a cat", min_probability=least)

    assert server.service.requests == []


def test_answers_cannot_be_changed(client):
    result = client.classify(b"a cat")

    with pytest.raises(AttributeError):
        result.model = "another"


@pytest.mark.parametrize("top_k", [0, -1, 2**32])
def test_a_top_k_that_no_server_could_mean_is_refused(client, server, top_k):
    with pytest.raises(InvalidRequestError, match=f"top_k: expected at least 1, got {top_k}"):
        client.classify(b"a cat", top_k=top_k)

    assert server.service.requests == []


@pytest.mark.parametrize(
    "form", [list, tuple, iter, dict.fromkeys], ids=["list", "tuple", "iterator", "dict"]
)
def test_many_images_give_a_list_in_their_order(client, form):
    assert labels(client.classify(form(numbered(3)))) == ["image 0", "image 1", "image 2"]


def test_a_list_may_mix_all_kinds_of_images(client, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"from a file")
    pixels = np.full((1, 2), ord("x"), np.uint8)

    assert labels(client.classify([tmp_path / "cat.jpg", pixels, b"bytes"])) == ["from a file", "xx", "bytes"]


def test_a_list_of_one_gives_a_list_of_one(client):
    assert labels(client.classify([b"a cat"])) == ["a cat"]


def test_no_images_give_an_empty_list_and_ask_nothing(client, server):
    assert client.classify([]) == []
    assert server.service.requests == []


def test_a_bad_image_fails_alone(client, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"bad")
    images = [b"good 1", tmp_path / "text.jpg", np.zeros((2, 2)), tmp_path / "missing.png", b"good 2"]
    first, text, floats, missing, last = client.classify(images)

    assert labels([first, last]) == ["good 1", "good 2"]
    assert str(text.error) == f"{tmp_path}/text.jpg: expected an image, got something else"
    assert "got float64 (2, 2)" in str(floats.error)
    assert str(missing.error) == f"{tmp_path}/missing.png: no such file"
    for result in (text, floats, missing):
        assert isinstance(result.error, InvalidImageError)
        assert result.predictions == ()
        with pytest.raises(InvalidImageError):
            result.raise_for_error()
        with pytest.raises(InvalidImageError):
            _ = result.top


def test_a_good_answer_has_nothing_to_raise(client):
    client.classify([b"a cat"])[0].raise_for_error()


def test_a_single_bad_image_raises(client, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"bad")

    with pytest.raises(InvalidRequestError, match=r"text\.jpg: expected an image, got something else"):
        client.classify(tmp_path / "text.jpg")


def test_a_bad_image_that_is_alone_in_its_request_fails_alone_too(client):
    *good, last = client.classify([*numbered(IMAGES_PER_REQUEST), b"bad"])

    assert labels(good) == [f"image {number}" for number in range(IMAGES_PER_REQUEST)]
    assert isinstance(last.error, InvalidRequestError)


def test_bad_images_beside_a_single_one_that_is_sent_keep_their_own_errors(client, tmp_path):
    missing, refused = client.classify([tmp_path / "missing.png", b"bad"])

    assert "no such file" in str(missing.error)
    assert str(refused.error) == "expected an image, got something else"


def test_images_that_cannot_be_sent_ask_nothing_of_the_server(client, server):
    results = client.classify([b""] * 100)

    assert len(results) == 100
    assert all(isinstance(result.error, InvalidImageError) for result in results)
    assert server.service.requests == []


def test_an_image_error_with_another_status_is_of_that_kind(client, server):
    server.service._classify = lambda request, context: pb.ClassifyResponse(
        results=[
            pb.ImageResult(error=pb.ImageError(code=14, message="gone\nfor good")) for _ in request.images
        ]
    )
    (result, _) = client.classify([b"a", b"b"])

    assert isinstance(result.error, UnavailableError)
    assert str(result.error) == "gone for good"


def test_a_request_that_fails_as_a_whole_fails_the_call(client):
    with pytest.raises(ModelNotFoundError, match="no model 'resnet81'"):
        client.classify(numbered(100), model="resnet81")


@pytest.mark.parametrize("results", [[], [pb.ImageResult()] * 3])
def test_a_server_that_answers_too_few_or_too_many_images_is_reported(client, server, results):
    server.service._classify = lambda request, context: pb.ClassifyResponse(results=results)

    with pytest.raises(ServerError, match=f"expected 2 results from the server, got {len(results)}"):
        client.classify([b"a", b"b"])


def test_a_server_that_says_nothing_about_an_image_is_reported(client, server):
    server.service._classify = lambda request, context: pb.ClassifyResponse(results=[pb.ImageResult()])

    with pytest.raises(ServerError, match="neither predictions nor an error"):
        client.classify(b"a")


def test_a_long_list_is_split_by_count_and_answered_in_order(client, server):
    count = 3 * IMAGES_PER_REQUEST + 5
    results = client.classify(numbered(count))

    assert labels(results) == [f"image {number}" for number in range(count)]
    assert sorted(len(request.images) for request in server.service.requests) == [
        5,
        *[IMAGES_PER_REQUEST] * 3,
    ]


def test_answers_that_come_out_of_order_are_put_in_order(client, server):
    second_came = threading.Event()

    def first_waits_for_second(request, context):
        if request.images[0].encoded == b"image 0":
            second_came.wait(5)
        else:
            second_came.set()

    server.service.script = first_waits_for_second
    count = 2 * IMAGES_PER_REQUEST

    assert labels(client.classify(numbered(count))) == [f"image {number}" for number in range(count)]


def test_large_images_are_split_by_bytes(server):
    limit = 1_000_000
    with Client(server.address, max_message_bytes=limit) as client:
        results = client.classify([b"%02d" % number + bytes(150_000) for number in range(12)])

    assert [result.top.label[:2] for result in results] == [f"{number:02}" for number in range(12)]
    assert len(server.service.requests) == 4
    assert all(request.ByteSize() <= limit // 2 for request in server.service.requests)


def test_an_image_of_nearly_the_message_limit_goes_alone(server):
    limit = 100_000
    sizes = [10, 90_000, 10]
    with Client(server.address, max_message_bytes=limit) as client:
        results = client.classify([bytes(size) for size in sizes])

    assert [result.error for result in results] == [None] * 3
    assert sorted(len(request.images) for request in server.service.requests) == [1, 1, 1]


def test_a_few_requests_are_in_flight_at_once_and_no_more(client, server):
    enough = threading.Event()

    def wait_for_company(request, context):
        if server.service.most_running == MAX_REQUESTS_IN_FLIGHT:
            enough.set()
        enough.wait(5)

    server.service.script = wait_for_company
    client.classify(numbered(8 * IMAGES_PER_REQUEST))

    assert server.service.most_running == MAX_REQUESTS_IN_FLIGHT


def test_an_iterator_of_any_length_is_never_held_in_memory(client, server):
    most_ahead = 0

    def images():
        nonlocal most_ahead
        for number in range(4096):
            most_ahead = max(most_ahead, number + 1 - server.service.answered_images)
            yield b"image %d" % number

    results = client.classify(images())

    assert len(results) == 4096
    # The requests in flight, the one being filled, and the image that starts the next.
    assert most_ahead <= (MAX_REQUESTS_IN_FLIGHT + 1) * IMAGES_PER_REQUEST + 1


def test_results_can_be_taken_one_by_one_from_an_endless_iterator(client):
    def forever():
        while True:
            yield b"a cat"

    results = client.classify_iter(forever())

    assert labels(next(results) for _ in range(100)) == ["a cat"] * 100
    results.close()


def test_classify_iter_refuses_what_it_would_iterate_by_mistake(client):
    with pytest.raises(TypeError, match="got one str; use classify"):
        client.classify_iter("cat.jpg")


def test_when_one_request_fails_those_in_flight_are_cancelled(client, server):
    second_came, cancelled = threading.Event(), threading.Event()

    def fail_the_first(request, context):
        if request.images[0].encoded == b"image 0":
            second_came.wait(5)
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        context.add_callback(cancelled.set)
        second_came.set()
        server.stopping.wait(30)

    server.service.script = fail_the_first
    with pytest.raises(UnavailableError, match="draining"):
        client.classify(numbered(2 * IMAGES_PER_REQUEST))

    assert cancelled.wait(5)

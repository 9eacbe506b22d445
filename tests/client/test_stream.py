"""What `classify_stream` sends, yields and asks again."""

import threading
from itertools import chain, count

import grpc
import pytest

from vistazo_client import (
    Client,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from vistazo_client._streams.session import STREAM_IMAGES_IN_FLIGHT
from vistazo_proto import classification_pb2 as pb


def numbered(length):
    return [(number, b"image %d" % number) for number in range(length)]


def failing(code, message="why", times=None, pushback_ms=None):
    """Return a script that answers with an error, the first `times` times."""
    asked = count(1)

    def script(request, context):
        if times is not None and next(asked) > times:
            return None
        error = pb.ImageError(code=code.value[0], message=message)
        return pb.ClassifyStreamResponse(id=request.id, error=error, retry_pushback_ms=pushback_ms)

    return script


def aborting(code, times=None, after=0):
    """Return a script that ends the stream after so many answers, so many times."""
    seen, ended = count(), count()

    def script(request, context):
        if next(seen) >= after and (times is None or next(ended) < times):
            context.abort(code, "why")

    return script


def test_a_stream_leaves_out_what_is_not_probable_enough(client, server):
    results = dict(client.classify_stream(numbered(3), min_probability=0.75))
    some = dict(client.classify_stream(numbered(3), min_probability=0.5))

    assert [result.predictions for result in results.values()] == [()] * 3
    assert all(result.error is None for result in results.values())
    assert [len(result.predictions) for result in some.values()] == [1] * 3


def test_every_image_is_answered_with_its_own_id(client, server):
    results = dict(client.classify_stream(numbered(100), model="resnet18", version="3", top_k=1))

    assert {number: result.top.label for number, result in results.items()} == {
        number: f"image {number}" for number in range(100)
    }
    assert {(result.model, result.version) for result in results.values()} == {("resnet18", "3")}
    assert server.service.streams == 1
    assert all(request.request.top_k == 1 for request in server.service.stream_requests)


def test_a_stream_that_was_read_to_its_end_ends_in_peace(client, server):
    assert len(list(client.classify_stream(numbered(3)))) == 3

    assert server.service.ended_streams == 1


def test_ids_may_be_anything_even_equal(client):
    marker = object()
    pairs = [(marker, b"a"), (marker, b"b"), (None, b"c"), ({"key": []}, b"d")]

    results = list(client.classify_stream(pairs))

    assert sorted(result.top.label for _, result in results) == ["a", "b", "c", "d"]
    assert [caller_id for caller_id, result in results if result.top.label in "ab"] == [marker, marker]


def test_no_images_give_no_results_and_need_no_server(open_client, nobody):
    with open_client(nobody) as client:
        assert list(client.classify_stream([])) == []


def test_a_bad_image_fails_alone(client, tmp_path):
    pairs = [("good", b"a cat"), ("bad", b"bad"), ("gone", tmp_path / "gone.jpg"), ("none", None)]

    results = dict(client.classify_stream(pairs))

    assert results["good"].top.label == "a cat"
    assert {name: type(results[name].error) for name in ("bad", "gone", "none")} == dict.fromkeys(
        ("bad", "gone", "none"), InvalidImageError
    )
    assert str(results["bad"].error) == "expected an image, got something else"
    assert str(results["gone"].error) == f"{tmp_path}/gone.jpg: no such file"


def test_what_the_server_says_of_one_image_is_its_result(client):
    ((_, result),) = client.classify_stream(numbered(1), model="resnet81")

    assert isinstance(result.error, ModelNotFoundError)


def test_answers_come_as_they_are_ready_not_as_they_were_asked(client, server):
    def last_first(request_iterator, context):
        requests = [next(request_iterator) for _ in range(3)]
        for request in reversed(requests):
            yield server.service._stream_answer(request)

    server.service.replace_stream = last_first

    assert [number for number, _ in client.classify_stream(numbered(3))] == [2, 1, 0]


def test_the_first_answer_does_not_wait_for_the_second_image(client):
    answered = threading.Event()

    def images():
        yield 1, b"first"
        assert answered.wait(10), "the first answer came only after the second image"
        yield 2, b"second"

    for number, _ in client.classify_stream(images()):
        if number == 1:
            answered.set()


def test_no_more_images_are_taken_than_fit_in_flight(client, server):
    taken = []

    def endless():
        for number in count():
            taken.append(number)
            yield number, b"image"

    results = client.classify_stream(endless())
    for _ in range(50):
        next(results)
    results.close()

    # Those that were fetched, those in flight, and one that its thread had in its hand.
    assert 50 <= len(taken) <= 50 + STREAM_IMAGES_IN_FLIGHT + 1


def test_leaving_the_loop_cancels_what_is_in_flight(client, server):
    cancelled = threading.Event()

    def wait(request, context):
        context.add_callback(cancelled.set)
        if request.request.images[0].encoded != b"image 0":
            server.stopping.wait(30)

    server.service.stream_script = wait
    for _, result in client.classify_stream(numbered(3)):
        assert result.top.label == "image 0"
        break

    assert cancelled.wait(10)


def test_streams_leave_no_thread_behind(server):
    def of_streams():
        return [thread for thread in threading.enumerate() if thread.name.startswith("vistazo-stream")]

    server.service.stream_script = aborting(grpc.StatusCode.UNAVAILABLE, times=3, after=30)
    with Client(server.address, timeout=20) as client:
        for _ in range(3):
            assert len(list(client.classify_stream(numbered(100)))) == 100
            left_early = client.classify_stream((number, b"a cat") for number in count())
            next(left_early)
            left_early.close()
        for thread in of_streams():
            thread.join(20)

        assert of_streams() == []


def test_an_error_of_the_images_source_comes_after_the_answers(client):
    def images():
        yield from numbered(3)
        raise LookupError("the camera is gone")

    results = client.classify_stream(images())
    assert sorted(number for number, _ in (next(results), next(results), next(results))) == [0, 1, 2]

    with pytest.raises(LookupError, match="the camera is gone"):
        next(results)


@pytest.mark.parametrize("images", [[b"a cat"], ["cat.jpg"], [(1, b"a", "b")]])
def test_images_without_ids_are_refused_with_a_hint(client, images):
    with pytest.raises(TypeError, match=r"expected \(id, image\) pairs, such as enumerate\(\) gives"):
        list(client.classify_stream(images))


def test_one_image_is_no_stream(client):
    with pytest.raises(TypeError, match="expected an iterable of images"):
        client.classify_stream(b"a cat")
    with pytest.raises(InvalidRequestError, match="top_k"):
        client.classify_stream(numbered(1), top_k=0)


def test_an_image_that_is_not_answered_in_time_says_so_and_the_others_go_on(client, server):
    def lose_one(request, context):
        lost = request.request.images[0].encoded == b"image 1"
        return pb.ClassifyStreamResponse(id="no one's") if lost else None

    server.service.stream_script = lose_one
    results = dict(client.classify_stream(numbered(3), timeout=0.5))

    assert results[0].top.label == "image 0"
    assert results[2].top.label == "image 2"
    assert isinstance(results[1].error, DeadlineExceededError)
    assert str(results[1].error) == "no answer within 0.5 s"


def test_a_caller_that_takes_its_time_loses_no_answer(client, server):
    results = {}
    pause = threading.Event()
    for number, result in client.classify_stream(numbered(5), timeout=0.4):
        results[number] = result.top.label
        pause.wait(0.3)

    assert len(results) == 5


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_an_image_that_was_refused_is_sent_again(client, server, code):
    server.service.stream_script = failing(code, times=2, pushback_ms=20)
    ((_, result),) = client.classify_stream(numbered(1))

    assert result.top.label == "image 0"
    assert len(server.service.stream_requests) == 3
    assert server.service.streams == 1


def test_an_image_is_not_sent_again_past_its_deadline(client, server):
    server.service.stream_script = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=60_000)
    ((_, result),) = client.classify_stream(numbered(1))

    assert isinstance(result.error, OverloadedError)
    assert result.error.retry_after == 60
    assert len(server.service.stream_requests) == 1


def test_with_no_retries_a_refusal_is_the_result(open_client, server):
    server.service.stream_script = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=1)
    with open_client(server.address, retries=0) as client:
        ((_, result),) = client.classify_stream(numbered(1))

    assert str(result.error) == "full"


def test_a_stream_that_breaks_is_opened_again_and_loses_nothing(client, server):
    server.service.stream_script = aborting(grpc.StatusCode.UNAVAILABLE, times=2, after=5)
    results = dict(client.classify_stream(numbered(40)))

    assert {number: result.top.label for number, result in results.items()} == {
        number: f"image {number}" for number in range(40)
    }
    assert server.service.streams == 3


def test_a_stream_that_never_answers_is_given_up_after_the_retries(open_client, server):
    server.service.stream_script = aborting(grpc.StatusCode.UNAVAILABLE)
    with (
        open_client(server.address, retries=2) as client,
        pytest.raises(UnavailableError, match=r"why|ended"),
    ):
        list(client.classify_stream(numbered(3)))

    assert server.service.streams == 3


def test_without_a_server_a_stream_says_so(open_client, nobody):
    with open_client(nobody, retries=1) as client, pytest.raises(UnavailableError, match="no server at"):
        list(client.classify_stream(numbered(3)))


def test_a_server_without_streams_is_told(client, server):
    server.service.stream_script = aborting(grpc.StatusCode.UNIMPLEMENTED)
    with pytest.raises(UnsupportedError):
        list(client.classify_stream(numbered(3)))


def test_after_a_break_one_image_goes_first(client, server):
    waiting = []

    def stream(request_iterator, context):
        waiting.append(0)
        if len(waiting) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "why")
        first = next(request_iterator)
        held = []
        following = threading.Thread(target=lambda: held.append(next(request_iterator)))
        following.start()
        following.join(0.3)
        waiting[-1] = len(held)
        yield server.service._stream_answer(first)
        following.join()
        for request in chain(held, request_iterator):
            yield server.service._stream_answer(request)

    server.service.replace_stream = stream
    results = dict(client.classify_stream(numbered(20)))

    assert {number: result.top.label for number, result in results.items()} == {
        number: f"image {number}" for number in range(20)
    }
    assert waiting == [0, 0]


def test_every_image_tells_the_server_how_long_its_answer_is_waited_for(client, server):
    list(client.classify_stream(numbered(3), timeout=7))
    list(client.classify_stream(numbered(1), timeout=1e9))

    assert all(6000 < request.timeout_ms <= 7000 for request in server.service.stream_requests[:3])
    assert server.service.stream_requests[3].timeout_ms == 2**32 - 1


def test_a_request_that_is_wrong_is_no_image_that_is_bad(client, server):
    server.service.stream_script = failing(grpc.StatusCode.INVALID_ARGUMENT, "top_k: too many")
    ((_, result),) = client.classify_stream(numbered(1))

    assert type(result.error) is InvalidRequestError


def test_an_answer_that_makes_no_sense_is_the_servers_error(client, server):
    server.service.stream_script = lambda request, context: pb.ClassifyStreamResponse(
        id=request.id, response=pb.ClassifyResponse()
    )
    ((_, result),) = client.classify_stream(numbered(1))

    assert isinstance(result.error, ServerError)


def test_a_stream_goes_on_through_long_silences(client):
    pause = threading.Event()

    def images():
        yield 1, b"first"
        pause.wait(0.3)
        yield 2, b"second"

    assert [number for number, _ in client.classify_stream(images(), timeout=0.2)] == [1, 2]


def test_a_stream_of_a_closed_client_is_refused(client):
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.classify_stream(numbered(1))

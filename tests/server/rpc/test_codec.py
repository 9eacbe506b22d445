"""Requests are checked here and nowhere else; answers say what the caller needs."""

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vistazo_proto import classification_pb2 as pb
from vistazo_server.errors import InvalidImageError, InvalidRequestError, ModelNotFoundError, QueueFullError
from vistazo_server.inference.classifier import Classified, Ranking
from vistazo_server.inference.side_thread import INLINE_SECONDS, at_once
from vistazo_server.repository.catalog import CatalogEntry, ModelState
from vistazo_server.rpc import wire
from vistazo_server.rpc.classification import codec


def decode(**fields):
    return codec.decode_request(pb.ClassifyRequest(**fields), max_images=2)


def raw(data=bytes(12), height=2, width=2, channels=3):
    return pb.Image(raw=pb.RawPixels(data=data, height=height, width=width, channels=channels))


@given(st.text(max_size=300), st.lists(st.text(max_size=50), max_size=30))
def test_the_answer_to_one_request_of_a_stream_is_written_as_protobuf_would(request_id, labels):
    response = pb.ClassifyResponse(model="m", version="1", batch_size=len(labels))
    for label in labels:
        response.results.add().predictions.predictions.add(label=label)
    expected = pb.ClassifyStreamResponse(id=request_id, response=response).SerializeToString()

    assert codec.encode_stream_response(request_id, response.SerializeToString()) == expected


def test_a_request_becomes_plain_values():
    command = decode(
        model="m", version="3", images=[pb.Image(encoded=b"jpeg"), raw(bytes(range(12)))], top_k=2
    )

    assert (command.model, command.version, command.top_k) == ("m", "3", 2)
    assert command.images[0] == b"jpeg"
    np.testing.assert_array_equal(command.images[1], np.arange(12, dtype=np.uint8).reshape(2, 2, 3))


def test_an_unset_top_k_is_not_zero():
    assert decode(images=[raw()]).top_k is None
    assert decode(images=[raw()], top_k=0).top_k == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [([], "images: expected at least 1, got none"), ([raw()] * 3, "images: expected at most 2, got 3")],
)
def test_the_number_of_images_is_bound(images, message):
    with pytest.raises(InvalidRequestError, match=message):
        decode(images=images)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (pb.Image(), "expected encoded bytes or raw pixels, got neither"),
        (raw(height=0), "got 0×2"),
        (
            raw(channels=5),
            "raw.channels: expected 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha), got 5",
        ),
        (raw(data=bytes(11)), "raw.data: expected 12 bytes for 2×2×3, got 11"),
        (raw(height=1 << 31, width=1 << 31), "got 12"),
    ],
)
def test_an_image_that_cannot_be_used_becomes_its_own_error_and_spares_the_others(image, message):
    command = decode(images=[image, raw()])

    assert isinstance(command.images[0], InvalidImageError)
    assert message in str(command.images[0])
    assert isinstance(command.images[1], np.ndarray)


def ranking(indexes, probabilities):
    return Ranking(np.array(indexes, np.intp), np.array(probabilities, np.float32))


texts = st.text(max_size=40)
seconds = st.floats(0, 1e6)


@given(
    names=st.tuples(texts, texts),
    labels=st.lists(texts, min_size=300, max_size=300),
    rankings=st.lists(
        st.lists(st.tuples(st.integers(0, 299), st.floats(0, 1, width=32)), max_size=40) | texts, max_size=4
    ),
    batch_size=st.integers(0, 2**32 - 1),
    times=st.tuples(seconds, seconds, seconds),
)
def test_an_answer_is_the_bytes_of_the_message_it_stands_for(names, labels, rankings, batch_size, times):
    results = [
        InvalidImageError(one)
        if isinstance(one, str)
        else ranking([index for index, _ in one], [probability for _, probability in one])
        for one in rankings
    ]
    encoded = at_once(codec.encode_response(*names, labels, Classified(results, batch_size, *times)))

    response = pb.ClassifyResponse.FromString(encoded)
    assert (response.model, response.version, response.batch_size) == (*names, batch_size)
    timing = response.timing
    assert (timing.queue_seconds, timing.preprocess_seconds, timing.compute_seconds) == times
    assert len(response.results) == len(rankings)
    for result, expected in zip(response.results, rankings, strict=True):
        if isinstance(expected, str):
            assert (result.error.code, result.error.message) == (3, expected)
        else:
            predictions = [(one.index, one.probability) for one in result.predictions.predictions]
            assert result.WhichOneof("outcome") == "predictions"
            assert predictions == expected
            assert [one.label for one in result.predictions.predictions] == [labels[i] for i, _ in expected]


@pytest.mark.parametrize(("images", "top_k"), [(1, 1), (1, 3000), (7, 512), (7, 513), (40, 300), (256, 1)])
def test_a_large_answer_is_written_in_parts_that_are_one_message(images, top_k):
    random = np.random.default_rng(images)
    labels = [f"label {index}" for index in range(3000)]
    results = [
        Ranking(random.permutation(3000)[:top_k], random.random(top_k, np.float32)) for _ in range(images)
    ]
    results[images // 2 :: 5] = [InvalidImageError("bad")] * len(results[images // 2 :: 5])
    steps = codec.encode_response("m", "1", labels, Classified(results, 4, 0.5, 0.25, 0.125))
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            encoded = end.value
            break
        pauses += 1

    expected = pb.ClassifyResponse(model="m", version="1", batch_size=4)
    expected.timing.queue_seconds, expected.timing.preprocess_seconds = 0.5, 0.25
    expected.timing.compute_seconds = 0.125
    for result in results:
        into = expected.results.add()
        if isinstance(result, InvalidImageError):
            into.error.code, into.error.message, into.error.reason = 3, "bad", "invalid-image"
            continue
        for index, probability in zip(result.indexes.tolist(), result.probabilities.tolist(), strict=True):
            into.predictions.predictions.add(index=index, label=labels[index], probability=probability)
    good = sum(isinstance(result, Ranking) for result in results)
    assert pb.ClassifyResponse.FromString(encoded) == expected
    # No part has more than so many predictions, or one image's.
    assert pauses >= good * top_k // (codec._PREDICTIONS_A_STEP + top_k) - 1


def test_large_answers_are_known_to_take_time_and_small_ones_not():
    def answer(images, top_k):
        one = Ranking(np.arange(top_k), np.zeros(top_k, np.float32))
        return Classified([one] * images, 1, 0.0, 0.0, 0.0)

    assert codec.encode_seconds(answer(1, 10)) < INLINE_SECONDS
    assert codec.encode_seconds(answer(256, 10)) < INLINE_SECONDS
    assert codec.encode_seconds(answer(256, 1000)) > INLINE_SECONDS


@given(texts, st.binary(max_size=300))
def test_a_streams_answer_is_the_message_around_it(request_id, model):
    response = pb.ClassifyResponse(model=model.hex(), batch_size=3)
    encoded = codec.encode_stream_response(request_id, response.SerializeToString())

    assert pb.ClassifyStreamResponse.FromString(encoded) == pb.ClassifyStreamResponse(
        id=request_id, response=response
    )


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_the_head_of_a_field_is_what_protobuf_writes(size):
    written = pb.ClassifyResponse(model="x" * size).SerializeToString()

    assert written == wire.field_head(pb.ClassifyResponse, "model", size) + b"x" * size


def test_a_streams_error_carries_the_callers_id_the_status_and_the_pushback():
    refused = codec.encode_stream_error("7", QueueFullError("full", retry_after=0.0251))
    unknown = codec.encode_stream_error("8", ModelNotFoundError("no such model"))

    assert (refused.id, refused.error.code, refused.retry_pushback_ms) == ("7", 8, 26)
    assert (unknown.id, unknown.error.code, unknown.HasField("retry_pushback_ms")) == ("8", 5, False)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_has_its_number(code):
    assert 0 <= wire.status_number(code) <= 16


def test_a_model_that_failed_says_why():
    message = codec.encode_model(CatalogEntry("m", "2", state=ModelState.FAILED, reason="checksum"))

    assert (message.name, message.version, message.state, message.reason) == ("m", "2", pb.FAILED, "checksum")
    assert not message.labels


@pytest.mark.parametrize("state", list(ModelState))
def test_every_state_has_a_name_on_the_wire(state):
    assert codec.encode_model(CatalogEntry("m", "1", state=state)).state != pb.STATE_UNSPECIFIED

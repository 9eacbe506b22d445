"""`preprocess="local"` of both clients: what is asked and what is sent."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from support.images import file
from support.shades import SIDE, label, model, pixels, refuse, sent, shade
from vistazo_client import (
    InvalidImageError,
)
from vistazo_preprocessing.preprocessor import Preprocessor
from vistazo_preprocessing.spec import PreprocessSpec, ResizeMode
from vistazo_proto import classification_pb2 as pb

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def client(server, open_client):
    with open_client(server.address, timeout=5, preprocess="local") as client:
        yield client


def test_pixels_are_sent_and_the_preprocessing_is_asked_once(told, client):
    for value in (1, 2):
        assert client.classify(shade(value), model="resnet18").top.label == label(value)
    results = client.classify([shade(3), np.full((5, 9, 3), 4, np.uint8)], model="resnet18")

    assert [result.top.label for result in results] == [label(3), label(4)]
    assert sent(told) == [(pixels(value), "first") for value in (1, 2, 3, 4)]
    assert told.service.asked == ["resnet18"]


def test_a_request_without_a_name_asks_for_the_only_model(told, client):
    told.service.models = {"resnet18": model()}
    client.classify(shade(1))

    assert told.service.asked == [""]
    assert sent(told) == [(pixels(1), "first")]


def test_of_several_models_without_a_name_the_server_says_what_is_wrong(told, client):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.classify(shade(1))

    assert sent(told) == [(shade(1), "")]


def test_the_highest_ready_version_is_the_one_that_counts(told, client):
    told.service.models = {
        "another": model(version="9"),
        "resnet18": model(version="10", preprocessing_id="tenth", side=6),
        "third": pb.Model(name="resnet18", version="11", state=pb.LOADING),
    }
    client.classify(shade(1))

    assert sent(told) == [(pixels(1, side=6), "tenth")]


def test_many_images_keep_their_order_and_fill_requests(told, client):
    results = client.classify((shade(number) for number in range(70)), model="resnet18")

    assert [result.top.label for result in results] == [label(number) for number in range(70)]
    # Two are on their way at once: either may arrive first.
    assert sorted(len(request.images) for request in told.service.requests) == [6, 32, 32]


def test_a_stream_sends_pixels_and_answers_each(told, client):
    results = dict(client.classify_stream(((n, shade(n)) for n in range(70)), model="resnet18"))

    assert {number: result.top.label for number, result in results.items()} == {
        number: label(number) for number in range(70)
    }
    assert {request.request.prepared_as for request in told.service.stream_requests} == {"first"}
    assert told.service.asked == ["resnet18"]


def test_what_the_caller_does_to_its_array_later_changes_nothing(told, client):
    frame = np.empty((20, 30, 3), np.uint8)

    def frames():
        for value in range(40):
            frame[:] = value
            yield frame

    results = client.classify(frames(), model="resnet18")
    assert [result.top.label for result in results] == [label(value) for value in range(40)]

    refuse(told, unless={"second", ""})
    told.service.models["resnet18"] = model(preprocessing_id="second")
    results = client.classify(frames(), model="resnet18")
    assert [result.top.label for result in results] == [label(value) for value in range(40)]


@pytest.mark.parametrize("ahead_bytes", [1 << 30, 1])
def test_how_many_images_are_taken_ahead_follows_from_what_they_hold(
    told, open_client, monkeypatch, ahead_bytes
):
    monkeypatch.setattr("vistazo_client._local.preparation.AHEAD_BYTES", ahead_bytes)
    monkeypatch.setattr("vistazo_client._codec.IMAGES_PER_REQUEST", 1)
    taken = []

    def images():
        for value in range(20):
            taken.append(value)
            yield np.full((9, 9, 3), value, np.uint8)

    with open_client(told.address, preprocess="local", timeout=5) as client:
        with closing(client.classify_iter(images(), model="resnet18")) as results:
            assert next(results).top.label == label(0)
        threads = client._preparation.pool.threads

    # At most two are with the server, one is to follow, one more showed that it is complete; the others are
    # ahead. Fewer where the first answer came sooner.
    ahead = 1 if ahead_bytes == 1 else min(2 * threads, 16)
    assert ahead < len(taken) <= 4 + ahead


def test_a_bad_image_is_never_sent_and_fails_alone(told, client, tmp_path):
    (tmp_path / "notes.jpg").write_text("only text")
    results = client.classify([shade(1), tmp_path / "notes.jpg", shade(2)], model="resnet18")

    assert [type(result.error) for result in results] == [type(None), InvalidImageError, type(None)]
    assert str(results[1].error).startswith(f"{tmp_path / 'notes.jpg'}: expected a JPEG, PNG, WebP or BMP")
    assert sent(told) == [(pixels(1), "first"), (pixels(2), "first")]


def test_an_image_over_the_limit_of_pixels_is_refused_here(told, client):
    with pytest.raises(InvalidImageError, match=r"^expected at most 65 megapixels, got 9000×8000"):
        client.classify(file(np.zeros((8000, 9000), np.uint8), compress_level=1), model="resnet18")


def test_pixels_equal_those_of_the_preprocessor(told, client):
    photo = Image.effect_noise((90, 70), 80).convert("RGB")
    client.classify(file(photo, "JPEG"), model="resnet18")
    spec = PreprocessSpec(
        SIDE, SIDE, 3, ResizeMode.STRETCH, 0, Image.Resampling.BILINEAR, resize_height=SIDE, resize_width=SIDE
    )

    made = Preprocessor(spec, max_pixels=10**6).decode(file(photo, "JPEG"))
    assert sent(told) == [(made.tobytes(), "first")]


def test_another_way_to_prepare_is_refused(server, open_client):
    with pytest.raises(ValueError, match=r"preprocess.*'server', 'local'.*'remote'"):
        open_client(server.address, preprocess="remote")


def test_threads_share_a_client_that_prepares(told, open_client):
    with open_client(told.address, preprocess="local", timeout=30) as client:

        def labels(first):
            results = client.classify([shade(first + number) for number in range(10)], model="resnet18")
            return [result.top.label for result in results]

        with ThreadPoolExecutor(8) as callers:
            answers = list(callers.map(labels, range(0, 160, 10)))

    assert [answer for each in answers for answer in each] == [label(number) for number in range(160)]

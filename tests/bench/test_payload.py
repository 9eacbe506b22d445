"""The requests, and which answers count as right."""

import io

import numpy as np
import pytest
from PIL import Image

from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.payload import Payload, make_payload, wrong_answers
from vistazo_client import ModelInfo, ModelState
from vistazo_proto import classification_pb2 as pb

MODEL = ModelInfo("net", "3", ModelState.READY, input_height=32, input_width=24, input_channels=3)


def response(*probabilities, images=1):
    predictions = [pb.Prediction(index=i, probability=p) for i, p in enumerate(probabilities)]
    result = pb.ImageResult(predictions=pb.Predictions(predictions=predictions))
    return pb.ClassifyResponse(results=[result] * images).SerializeToString()


def payload(*references, images=1):
    return Payload((b"",) * len(references), images, np.empty(0, np.uint8), (), "", references)


@pytest.mark.parametrize("channels", [1, 3])
def test_tensor_requests_hold_pixels_of_the_models_own_size(channels):
    model = ModelInfo("net", "3", ModelState.READY, input_height=32, input_width=24, input_channels=channels)
    made = make_payload(model, kind="tensor", images_per_request=3)
    requests = [pb.ClassifyRequest.FromString(request) for request in made.requests]
    assert made.tensors.shape == (4, 32, 24, channels)
    assert len({request.images[0].raw.data for request in requests}) == len(requests)
    for request in requests:
        assert (request.model, request.version, len(request.images)) == ("net", "3", 3)
        raw = request.images[0].raw
        assert (raw.height, raw.width, raw.channels) == (32, 24, channels)


def test_jpeg_requests_hold_photographs_of_500_by_375():
    made = make_payload(MODEL, kind="jpeg")
    for request in made.requests:
        encoded = pb.ClassifyRequest.FromString(request).images[0].encoded
        with Image.open(io.BytesIO(encoded)) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
    assert len(set(made.encoded)) == len(made.encoded) == 4


def test_a_picture_of_the_users_own_is_sent_and_named(tmp_path):
    path = tmp_path / "cat.png"
    Image.new("RGB", (60, 40), (10, 200, 30)).save(path)
    made = make_payload(MODEL, kind="tensor", image=path)
    assert "cat.png" in made.source
    assert (made.tensors == (10, 200, 30)).all()


def test_a_picture_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="cannot read the image"):
        make_payload(MODEL, kind="jpeg", image=tmp_path / "none.jpg")


def test_without_a_photograph_noise_is_sent_and_said(monkeypatch):
    monkeypatch.setattr("vistazo_bench.measuring.pictures.PHOTOGRAPHS", ())
    assert "noise" in make_payload(MODEL, kind="jpeg").source


def test_a_model_whose_input_is_unknown_is_an_error():
    with pytest.raises(BenchError, match="is it ready"):
        make_payload(ModelInfo("net", "1", ModelState.LOADING), kind="tensor")


def test_right_answers_may_differ_in_the_last_digits():
    assert wrong_answers(payload(response(0.5, 0.3)), [(0, response(0.505, 0.298))]) == []


@pytest.mark.parametrize(
    "answer",
    [
        response(0.9, 0.05),
        response(0.5),
        response(0.5, 0.3, images=2),
        pb.ClassifyResponse(results=[pb.ImageResult(error=pb.ImageError(code=3))]).SerializeToString(),
        b"\xff\xff",
    ],
    ids=["another answer", "fewer classes", "more images", "an error", "no message"],
)
def test_wrong_answers_are_found(answer):
    assert len(wrong_answers(payload(response(0.5, 0.3)), [(0, answer)])) == 1

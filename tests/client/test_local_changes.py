"""`preprocess="local"` where the server does not say how it prepares, says something new, or changes."""

import warnings

import grpc
import pytest

from support.shades import label, model, pixels, refuse, sent, shade
from vistazo_client import (
    LocalPreprocessingWarning,
    ModelNotFoundError,
    UnavailableError,
)
from vistazo_proto import classification_pb2 as pb

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def client(server, open_client):
    with open_client(server.address, timeout=5, preprocess="local") as client:
        yield client


def test_a_server_that_does_not_say_gets_the_images_and_a_warning_says_so_once(server, client):
    with pytest.warns(LocalPreprocessingWarning, match=r"'resnet18' .* by the server: .* may be older"):
        client.classify(shade(1), model="resnet18")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.classify([shade(1), shade(1)], model="resnet18")
        list(client.classify_stream([(1, shade(1))], model="resnet18"))

    assert sent(server) == [(shade(1), "")] * 3
    assert server.service.asked == ["resnet18"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (pb.Model(name="resnet18", version="1", state=pb.READY), "takes tensors only"),
        (model(resize_mode=77), "resize_mode 77"),
        (model(interpolation="psychic"), "interpolation 'psychic'"),
        (model(crop_rounding=5), "crop_rounding 5"),
        (model(jpeg_decoding=9), "in a way that this client does not know"),
        (model(preprocessing_id=""), "in a way that this client does not know"),
        (pb.Model.FromString(model().SerializeToString() + b"\xfa\x01\x03\xf8\x3f\x01"), "does not know"),
        (model(side=5000), "more than one message may hold"),
    ],
    ids=["tensors", "mode", "interpolation", "rounding", "jpeg", "no id", "unknown field", "too large"],
)
def test_what_this_client_cannot_do_is_left_to_the_server(server, client, answer, reason):
    server.service.models["resnet18"] = answer
    with pytest.warns(LocalPreprocessingWarning, match=reason):
        client.classify(shade(1), model="resnet18")

    assert sent(server) == [(shade(1), "")]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED])
def test_who_may_not_ask_sends_the_images(told, client, code):
    told.service.model_script = lambda context: context.abort(code, "not for you")
    with pytest.warns(LocalPreprocessingWarning, match="does not say how it prepares images"):
        client.classify(shade(1), model="resnet18")

    assert sent(told) == [(shade(1), "")]


def test_a_model_that_is_loading_is_asked_about_again(told, client):
    told.service.models["resnet18"] = pb.Model(name="resnet18", version="1", state=pb.LOADING)
    client.classify(shade(1), model="resnet18")
    told.service.models["resnet18"] = model()
    client.classify(shade(2), model="resnet18")

    assert sent(told) == [(shade(1), ""), (pixels(2), "first")]


def test_a_server_that_begins_to_say_is_noticed_after_a_while(server, client, monkeypatch):
    monkeypatch.setattr("vistazo_client._local.preparation.ASK_AGAIN_SECONDS", 0.0)
    with pytest.warns(LocalPreprocessingWarning):
        client.classify(shade(1), model="resnet18")
    server.service.models["resnet18"] = model()
    client.classify(shade(2), model="resnet18")

    assert sent(server) == [(shade(1), ""), (pixels(2), "first")]


def test_no_server_is_the_error_that_it_always_is(nobody, open_client):
    with open_client(nobody, preprocess="local", retries=0) as client:
        with pytest.raises(UnavailableError, match="no server at"):
            client.classify(shade(1), model="resnet18")
        with pytest.raises(UnavailableError, match="no server at"):
            list(client.classify_stream([(1, shade(1))], model="resnet18"))


def test_an_unknown_model_is_the_error_that_it_always_is(told, client):
    with pytest.raises(ModelNotFoundError):
        client.classify(shade(1), model="nothing")
    ((_, result),) = client.classify_stream([(1, shade(1))], model="nothing")

    assert isinstance(result.error, ModelNotFoundError)


def test_after_a_swap_images_are_prepared_again_as_the_new_version_wants(told, client):
    client.classify(shade(1), model="resnet18")
    told.service.models["resnet18"] = model(preprocessing_id="second", side=6)
    refuse(told, unless={"second", ""})
    results = client.classify([shade(2), b"no image", shade(3)], model="resnet18")

    assert [str(result.error or result.top.label)[:20] for result in results] == [
        label(2)[:20],
        "expected a JPEG, PNG",
        label(3)[:20],
    ]
    assert sent(told)[1:] == [
        (pixels(2), "first"),
        (pixels(3), "first"),
        (pixels(2, side=6), "second"),
        (pixels(3, side=6), "second"),
    ]
    assert told.service.asked == ["resnet18"] * 2


def test_a_stream_goes_on_through_a_swap(told, client):
    def images():
        for number in range(60):
            if number == 20:
                told.service.models["resnet18"] = model(preprocessing_id="second", side=6)
                refuse(told, unless={"second", ""})
            yield number, shade(number)

    results = dict(client.classify_stream(images(), model="resnet18"))
    as_they_are = {shade(number)[:64].decode("latin-1"): number for number in range(60)}

    for number, result in results.items():
        assert result.top.label == label(number) or as_they_are[result.top.label] == number
    assert len(results) == 60
    assert results[59].top.label == label(59)


def test_replicas_that_prepare_in_different_ways_get_the_images(told, client):
    """One is asked, another answers, and neither is wrong."""
    refuse(told, unless={"the other's", ""})
    with pytest.warns(LocalPreprocessingWarning, match="its replicas prepare images in different ways now"):
        client.classify(shade(1), model="resnet18")
    client.classify(shade(2), model="resnet18")

    assert sent(told) == [(pixels(1), "first"), (shade(1), ""), (shade(2), "")]


def test_a_server_that_changes_all_the_time_gets_the_images_in_the_end(told, client):
    def script(request, context):
        if request.prepared_as:
            told.service.models["resnet18"] = model(preprocessing_id=f"{request.prepared_as}+")
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "prepared in another way")

    told.service.script = script
    client.classify(shade(1), model="resnet18")

    assert sent(told) == [(pixels(1), "first"), (pixels(1), "first+"), (shade(1), "")]

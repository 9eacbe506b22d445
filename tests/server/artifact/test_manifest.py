"""A manifest is believed only when it is whole and does not contradict itself."""

import json

import pytest
from google.protobuf import json_format

from support.tiny import LABELS, tiny_manifest
from vistazo_server.artifact.manifest import ScoreKind, ScoresSpec, read_manifest
from vistazo_server.errors import ModelLoadError


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        manifest = json.loads(
            json_format.MessageToJson(tiny_manifest("tiny", b"model"), preserving_proto_field_name=True)
        )
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = manifest
            for parent in parents:
                target = target[parent]
            target[last] = value
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps(manifest))
        return path

    return write


def test_a_whole_manifest_becomes_plain_values(write):
    spec = read_manifest(write(), name="tiny")

    assert spec.labels == LABELS
    assert spec.image is not None
    assert spec.image.preprocess.input_shape == (4, 4, 3)
    assert (spec.image.preprocess.mean, spec.image.preprocess.std) == ((), ())
    assert spec.scores == ScoresSpec("logits", ScoreKind.LOGITS)
    assert (spec.weights, spec.precision, spec.max_batch_size) == ("checkpoint", "fp32", 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format: expected 1, got 2"),
        ({"name": "other"}, "name: expected 'tiny', the folder's, got 'other'"),
        ({"labels": ["one"]}, "labels: expected 3, one a class, got 1"),
        ({"input__layout": "HWCN"}, "input.layout: expected one of NHWC, NCHW, got 'HWCN'"),
        ({"input__dtype": "INT8"}, "input.dtype: expected one of UINT8, FP32, FP16, got 'INT8'"),
        (
            {"input__dtype": "FP32", "preprocessing__mean": [0.5]},
            "expected a mean and std for each of 3 channels, since the server normalises FP32, got 1 and 3",
        ),
        ({"input__dtype": "FP32", "preprocessing__std": [1, 0, 1]}, "std: expected numbers above 0"),
        (
            {"external_files": [{"path": "../weights", "bytes": 1, "sha256": "a" * 64}]},
            "'../weights' is not a path inside the version's folder",
        ),
        ({"input__channels": 4}, "input.channels: expected 1 or 3, got 4"),
        ({"input__height": 0}, "got 0×4"),
        ({"preprocessing__crop_width": 5}, "the crop's size differs"),
        ({"preprocessing__interpolation": "quadratic"}, "got 'quadratic'"),
        ({"preprocessing__resize_size": 0}, "resize_size: expected at least 1"),
        ({"preprocessing__resize_mode": "COVER"}, "resize_height and resize_width: expected at least 1"),
        ({"preprocessing__channel_order": "GBR"}, "expected RGB or BGR, got 'GBR'"),
        ({"preprocessing__value_range": 2}, "value_range: expected 1 or 255, got 2"),
        ({"preprocessing__pad_color": [0, 0, 256]}, "pad_color: expected 3 numbers of 0 to 255"),
        ({"preprocessing__pad_color": [9]}, "pad_color: expected 3 numbers of 0 to 255"),
        ({"preprocessing__background": [0, 0, 256]}, "background: expected 3 numbers of 0 to 255"),
        ({"preprocessing__background": [9, 9]}, "or 1 (grey), got [9, 9]"),
        ({"preprocessing__crop_rounding": 9}, "crop_rounding: 9 is not known"),
        ({"preprocessing__resize_mode": "RESIZE_MODE_UNSPECIFIED"}, "resize_mode: 0 is not known"),
        ({"output__kind": "KIND_UNSPECIFIED"}, "output.kind: 0 is not known"),
        ({"output__kind": 9}, "output.kind: 9 is not known"),
        (
            {"output__binary": True, "output__kind": "INDEPENDENT"},
            "output.binary: expected 2 classes and an independent kind, got 3 and independent",
        ),
        (
            {"output__binary": True, "output__classes": 2, "labels": ["no", "yes"]},
            "output.binary: expected 2 classes and an independent kind, got 2 and logits",
        ),
        ({"weights__source": "SOURCE_UNSPECIFIED"}, "weights.source: 0 is not known"),
        ({"max_batch_size": 0}, "max_batch_size: expected at least 1, got 0"),
        ({"model_sha256": "abc"}, "model_sha256: expected 64 hexadecimal digits"),
        ({"colour": "red"}, "cannot be read"),
    ],
)
def test_a_contradiction_is_named(write, changes, message):
    with pytest.raises(ModelLoadError) as refused:
        read_manifest(write(**changes), name="tiny")

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_imported_model_says_how_its_input_is_made(write):
    spec = read_manifest(
        write(
            input__layout="NCHW",
            input__dtype="FP16",
            preprocessing__mean=[0.5, 0.4, 0.3],
            preprocessing__std=[0.2, 0.2, 0.1],
            weights__source="IMPORTED",
        ),
        name="tiny",
    )

    preprocess = spec.image.preprocess
    assert (preprocess.input_shape, preprocess.dtype) == ((3, 4, 4), "float16")
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert spec.weights == "imported"


@pytest.mark.parametrize("kind", ScoreKind)
def test_a_manifest_says_what_its_scores_are(write, kind):
    name = kind.name

    assert read_manifest(write(output__kind=name), name="tiny").scores == ScoresSpec("logits", kind)


def test_one_score_may_stand_for_two_classes(write):
    changes = {"output__binary": True, "output__classes": 2, "output__kind": "INDEPENDENT_LOGITS"}
    spec = read_manifest(write(**changes, labels=["no", "yes"]), name="tiny")

    assert spec.scores == ScoresSpec("logits", ScoreKind.INDEPENDENT_LOGITS, is_binary=True)


@pytest.mark.parametrize("part", ["input", "preprocessing", "output"])
def test_without_one_of_its_parts_a_model_takes_no_images(write, part):
    path = write()
    manifest = json.loads(path.read_text())
    del manifest[part]
    path.write_text(json.dumps(manifest))

    spec = read_manifest(path, name="tiny")

    assert spec.image is None
    assert spec.labels == LABELS


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_garbled_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)

    with pytest.raises(ModelLoadError) as refused:
        read_manifest(path, name="tiny")
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match=r"manifest\.json is missing"):
        read_manifest(tmp_path / "manifest.json", name="tiny")


BGR = {"preprocessing__channel_order": "BGR", "preprocessing__value_range": 255}


@pytest.mark.parametrize(
    ("changes", "bgr", "value_range"),
    [
        ({}, False, 1),
        (BGR | {"input__dtype": "FP32"}, True, 255),
        # An exported graph orders and normalises bytes itself; one without a mean leaves the order free.
        (BGR, False, 255),
        (
            {"preprocessing__channel_order": "BGR", "preprocessing__mean": [], "preprocessing__std": []},
            True,
            1,
        ),
    ],
)
def test_whoever_normalises_orders_the_channels(write, changes, bgr, value_range):
    image = read_manifest(write(**changes), name="tiny").image

    assert image is not None
    assert (image.preprocess.bgr, image.preprocess.value_range) == (bgr, value_range)

"""Triton's config.pbtxt says what a graph without a manifest is; what needs none never fails for it."""

import os

import pytest
from structlog.testing import capture_logs

from support.tiny import tiny_model, write_model
from vistazo_server.artifact.triton_config import ConfigError, TritonConfig, read_triton_config
from vistazo_server.artifact.verification import verified_spec
from vistazo_server.errors import ModelLoadError

# As Triton's documentation and its users write them.
WHOLE = """
# A comment with a [ and a "quote
name: "resnet"
platform: "onnxruntime_onnx"
default_model_filename: "net.onnx"
max_batch_size: 8
input [ { name: "images" data_type: TYPE_UINT8 format: FORMAT_NHWC dims: [ 4, 4, 3 ] } ]
output [
  { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" },
  { name: "other [" data_type: TYPE_OF_TOMORROW dims [ -1 ] reshape: { shape: [ ] } }
]
batch_input [ { kind: BATCH_ELEMENT_COUNT target_name: "n" source_input: "images" } ]
instance_group [ { kind: KIND_GPU count: 2 gpus: [ 0, 1 ] } ]
optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "tensorrt"
  parameters { key: "precision_mode" value: "FP16" } } ] } }
model_warmup [ { name: "w" batch_size: 1
  inputs { key: "images" value: { dims: [ 4, 4, 3 ] random_data: true } } } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
version_policy: { latest { num_versions: 2 } }
parameters { key: "a" value: { string_value: 'b "c" [' } }
"""


@pytest.fixture
def model(tmp_path):
    """A model's folder with version 1, which has no manifest."""
    (write_model(tmp_path) / "manifest.json").unlink()
    return tmp_path / "tiny"


def config(model, text):
    """Write a config.pbtxt, and return version 1."""
    content = text if isinstance(text, bytes) else text.encode()
    (model / "config.pbtxt").write_bytes(content)
    return model / "1"


def spec_and_warnings(version):
    with capture_logs() as logs:
        spec = verified_spec(version, "tiny")
    return spec, [f"{log['event']}: {log['reason']}" for log in logs]


def test_a_config_says_file_batch_and_labels_and_its_other_fields_are_skipped(model):
    config(model, WHOLE)

    assert read_triton_config(model / "config.pbtxt") == TritonConfig(
        model_file="net.onnx", max_batch_size=8, label_files=(("logits", "labels.txt"),)
    )


def test_a_version_is_what_its_config_says(model):
    version = config(model, WHOLE)
    (version / "model.onnx").rename(version / "net.onnx")
    (model / "labels.txt").write_bytes("\ufeffred\r\ngreen\r\n blue \r\n\r\n".encode())

    spec, warnings = spec_and_warnings(version)

    assert warnings == []
    assert (spec.model_file, spec.max_batch_size, spec.image) == ("net.onnx", 8, None)
    assert spec.output_labels == (("logits", ("red", "green", "blue")),)


def test_no_config_is_none(model):
    assert read_triton_config(model / "config.pbtxt") == TritonConfig()
    assert spec_and_warnings(model / "1")[0].model_file == "model.onnx"


def test_a_model_with_a_manifest_reads_no_config(tmp_path):
    version = config(write_model(tmp_path).parent, 'backend: "python" {{{')

    spec, warnings = spec_and_warnings(version)

    assert spec.image is not None
    assert warnings == []


BROKEN = {
    "an open string": ('name: "m', "Invalid field value"),
    "no text": (b"\xff\xfe\0", "it is no UTF-8 at byte 0"),
    "nested without end": ("a {" * 50_000, "it is nested too deep"),
    "lists without end": ("a [" * 50_000, ""),
    "known messages without end": ("output {" * 50_000, ""),
    "too large": ("#" * 1_000_000, "it is larger than 256 KiB"),
    "a field twice": ('platform: "a" platform: "b"', "should not have multiple"),
    "a text for a number": ('max_batch_size: "many"', "Couldn't parse integer"),
    "a number beyond 64 bits": ("max_batch_size: 99999999999999999999", "out of range"),
    "JSON": ('{"name": "tiny"}', ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_is_one_line_and_the_model_serves_without_it(model, name):
    text, reason = BROKEN[name]
    version = config(model, text)

    with pytest.raises(ConfigError) as failed:
        read_triton_config(model / "config.pbtxt")
    spec, (warning,) = spec_and_warnings(version)

    assert spec.model_file == "model.onnx"
    assert reason in str(failed.value)
    assert warning == f"triton_config_unused: {failed.value}"
    assert warning.isprintable()
    assert len(warning) < 500


def test_a_pipe_in_place_of_a_config_or_a_graph_holds_up_nothing(model):
    os.mkfifo(model / "config.pbtxt")
    assert spec_and_warnings(model / "1")[1][0].endswith("config.pbtxt cannot be read: it is no file")

    (model / "1/model.onnx").unlink()
    os.mkfifo(model / "1/model.onnx")
    with pytest.raises(ModelLoadError, match=r"model\.onnx cannot be read: it is no file$"):
        verified_spec(model / "1", "tiny")


@pytest.mark.parametrize(
    "text",
    [
        'platform: "tensorrt_plan"',
        'backend: "python"',
        'platform: "ensemble" ensemble_scheduling { step [ { model_name: "a" } ] }',
        'backend: "openvino" platform: "onnxruntime_onnx"',
    ],
)
def test_what_another_backend_runs_is_refused_by_its_name(model, text):
    with pytest.raises(
        ModelLoadError, match=r"config\.pbtxt says (platform|backend) '\w+', which this server"
    ):
        verified_spec(config(model, text), "tiny")


@pytest.mark.parametrize(
    "path",
    ["../../other/1/model.onnx", "/etc/passwd", "a/../../b", "..", ".", "a\\000b", "x" * 5000, "a/" * 900],
)
def test_a_path_that_leads_out_of_the_version_or_is_none_is_refused(model, path):
    with pytest.raises(ModelLoadError, match=r"default_model_filename: expected a path inside the version's"):
        verified_spec(config(model, f'default_model_filename: "{path}"'), "tiny")


@pytest.mark.parametrize("path", ["../../secret.txt", "/etc/passwd", "a\\000b"])
def test_labels_are_not_read_from_outside(model, path):
    spec, (warning,) = spec_and_warnings(
        config(model, f'output {{ name: "logits" label_filename: "{path}" }}')
    )

    assert spec.output_labels == ()
    assert warning.startswith("labels_unused: label_filename: expected a path inside the model's folder")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "labels.txt is missing"),
        (b"\xe9t\xe9", "labels.txt cannot be read: it is no UTF-8 at byte 0"),
        (b"a\n" * (5 << 20), "labels.txt is not read: it is larger than 8192 KiB"),
    ],
    ids=["missing", "Latin-1", "too large"],
)
def test_labels_that_cannot_be_read_are_left_out_and_told(model, content, reason):
    version = config(model, 'output { name: "logits" label_filename: "labels.txt" }')
    if content is not None:
        (model / "labels.txt").write_bytes(content)

    spec, (warning,) = spec_and_warnings(version)

    assert spec.output_labels == ()
    assert warning.endswith(reason)


@pytest.mark.parametrize(("said", "taken"), [(0, 0), (-1, 0), (1024, 1024), (100_000, 1024)])
def test_a_largest_batch_out_of_bounds_is_changed_and_told(model, said, taken):
    spec, warnings = spec_and_warnings(config(model, f"max_batch_size: {said}"))

    assert spec.max_batch_size == taken
    assert bool(warnings) == (said != taken)


def test_a_folder_called_model_onnx_holds_the_graph_as_in_triton(model):
    version = model / "1"
    (version / "model.onnx").rename(version / "aside")
    (version / "model.onnx").mkdir()
    (version / "aside").rename(version / "model.onnx/model.onnx")

    assert verified_spec(version, "tiny").model_file == "model.onnx/model.onnx"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "model.onnx is missing: the folder is empty; "),
        (["resnet.onnx"], "the folder has resnet.onnx: rename it to model.onnx, or name it in "),
        (
            ["a.onnx", "b.onnx"],
            "the folder has a.onnx, b.onnx: rename the one to serve to model.onnx, or name ",
        ),
        (["model.pt"], "the folder has model.pt (PyTorch), which is not served: make a version of it with "),
        (["model.plan"], "the folder has model.plan (TensorRT), which is not served: "),
        (
            ["saved_model.pb"],
            "the folder has saved_model.pb (TensorFlow), which is not served: convert it to ",
        ),
        (["README"], "the folder has README: copy the graph there, or remove the folder"),
        ([".hidden", "model.onnx.part"], "model.onnx is missing: the folder is empty; "),
    ],
)
def test_a_version_without_its_graph_says_what_it_has_instead(model, files, reason):
    version = model / "1"
    (version / "model.onnx").unlink()
    for file in files:
        (version / file).write_bytes(tiny_model().SerializeToString())

    with pytest.raises(ModelLoadError) as failed:
        verified_spec(version, "tiny")

    assert reason in str(failed.value)


def test_a_config_that_names_a_file_that_is_not_there_says_so(model):
    version = config(model, 'default_model_filename: "net.onnx"')
    with pytest.raises(
        ModelLoadError, match=r"1/net\.onnx is missing, the default_model_filename of .*pbtxt; "
    ):
        verified_spec(version, "tiny")


def test_a_graph_that_is_a_link_to_nothing_says_so(model):
    (model / "1/model.onnx").unlink()
    (model / "1/model.onnx").symlink_to("../blobs/4711")
    with pytest.raises(
        ModelLoadError, match=r"model\.onnx is a link to '\.\./blobs/4711', which is not there"
    ):
        verified_spec(model / "1", "tiny")

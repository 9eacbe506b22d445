"""A repository as Triton serves it, without manifests: file, labels and largest batch of its config.pbtxt."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.serving import serving
from support.tiny import plain, tiny_model
from vistazo_proto import open_inference_pb2 as pb
from vistazo_proto import open_inference_pb2_grpc as pb_grpc

RED = plain(200, 10, 10)

CONFIG = """
name: "birds"
platform: "onnxruntime_onnx"
max_batch_size: %d
default_model_filename: "net.onnx"
input [ { name: "images" data_type: TYPE_UINT8 dims: [ 4, 4, 3 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


@pytest.fixture
def birds(tmp_path) -> Path:
    """The folder of a model with config.pbtxt, labels.txt and version 1, in a repository."""
    folder = tmp_path / "models/birds"
    (folder / "1").mkdir(parents=True)
    (folder / "1/net.onnx").write_bytes(tiny_model().SerializeToString())
    (folder / "config.pbtxt").write_text(CONFIG % 4)
    (folder / "labels.txt").write_text("robin\nwren\nkingfisher\n")
    return folder


async def classes_of(server) -> list[str]:
    """Return the two best classes of a red image, as the extension `classification` writes them."""
    request = pb.ModelInferRequest(model_name="birds", raw_input_contents=[RED.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=[1, *RED.shape])
    request.outputs.add(name="logits").parameters["classification"].int64_param = 2
    response = await pb_grpc.GRPCInferenceServiceStub(server.channel).ModelInfer(request)
    return [element.decode() for element in elements_of(response.raw_output_contents[0])]


def elements_of(data: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor, each with its length before it."""
    elements = []
    while data:
        length = int.from_bytes(data[:4], "little")
        elements.append(data[4 : 4 + length])
        data = data[4 + length :]
    return elements


async def test_classification_names_the_labels_of_label_filename(birds):
    async with serving(birds.parent) as server:
        assert await classes_of(server) == ["20.000000:0:robin", "1.000000:1:wren"]


async def test_the_configuration_tells_the_file_and_the_largest_batch(birds):
    async with serving(birds.parent) as server:
        stub = pb_grpc.GRPCInferenceServiceStub(server.channel)
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name="birds"))).config

    assert config.default_model_filename == "net.onnx"
    assert 1 <= config.max_batch_size <= 4


@pytest.mark.parametrize("labels", ["robin\nwren\n", "robin\nwren\nkingfisher\neagle\n", ""])
async def test_a_wrong_number_of_labels_is_named_and_none_is_given(birds, labels):
    (birds / "labels.txt").write_text(labels)
    with capture_logs() as logs:
        async with serving(birds.parent) as server:
            assert await classes_of(server) == ["20.000000:0", "1.000000:1"]

    (warning,) = [log for log in logs if log["event"] == "labels_unused"]
    count = len(labels.splitlines())
    assert warning["reason"] == f"'logits' has 3 classes, its label_filename has {count} labels"


async def test_a_config_and_labels_that_change_are_taken_over(birds):
    async with serving(birds.parent, model_control="explicit", load="*") as server:
        (birds / "labels.txt").write_text("finch\nwren\nkingfisher\n")
        await server.server.repository.load("birds")
        assert (await classes_of(server))[0] == "20.000000:0:finch"

        (birds / "config.pbtxt").write_text('default_model_filename: "net.onnx"')
        await server.server.repository.load("birds")
        assert (await classes_of(server))[0] == "20.000000:0"


async def test_other_platforms_are_named_and_leave_the_others_serving(birds):
    plan = birds.parent / "plan"
    (plan / "1").mkdir(parents=True)
    (plan / "1/model.plan").write_bytes(b"plan")
    (plan / "config.pbtxt").write_text('platform: "tensorrt_plan" max_batch_size: 8')
    async with serving(birds.parent) as server:
        entries = {entry.name: entry for entry in server.server.repository.entries()}

    assert entries["birds"].state.value == "ready"
    assert entries["plan"].state.value == "failed"
    assert "says platform 'tensorrt_plan', which this server does not run" in entries["plan"].reason

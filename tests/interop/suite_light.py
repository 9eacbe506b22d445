"""The onnx package's classification networks, which nobody here made, against ONNX Runtime run directly."""

import functools
import io

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tritonclient.grpc import InferRequestedOutput

from support.onnx_zoo import LIGHT, LIGHT_NAMES

pytestmark = pytest.mark.parametrize("name", LIGHT_NAMES)


@functools.cache
def session_of(name):
    """Return a session of the bare graph; making one of VGG-19 takes seconds."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        LIGHT / f"light_{name}.onnx", options, providers=["CPUExecutionProvider"]
    )


@pytest.fixture
def session(name):
    return session_of(name)


def test_the_answer_is_onnx_runtimes_own(client, tensor, session, name):
    """L0_backend_onnxruntime, L0_infer: outputs equal those of the graph."""
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    pixels = np.random.default_rng(3).normal(size=given.shape).astype(np.float32)
    (expected,) = session.run(None, {given.name: pixels})
    metadata = client.get_model_metadata(name)
    result = client.infer(name, [tensor(pixels, given.name)])
    got = result.as_numpy(output.name)

    assert [(t.name, t.datatype) for t in metadata.inputs] == [(given.name, "FP32")]
    assert [(t.name, t.datatype) for t in metadata.outputs] == [(output.name, "FP32")]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_classes_are_asked_of_it(client, tensor, session, name):
    """L0_infer: InferTest.test_class_*."""
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    asked = [InferRequestedOutput(output.name, class_count=3)]
    result = client.infer(name, [tensor(np.zeros(given.shape, np.float32), given.name)], outputs=asked)
    classes = [value.decode().split(":") for value in result.as_numpy(output.name).ravel()]

    assert len(classes) == 3
    assert len({index for _, index, *_ in classes}) == 3


def test_images_go_to_imported_models_alone(client, tensor, session, name, server, refusal):
    """An encoded image is decoded and prepared by the server where a manifest says how."""
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    file = io.BytesIO()
    Image.fromarray(np.full((300, 400, 3), 127, np.uint8)).save(file, "PNG")
    encoded = tensor(np.array([file.getvalue()], dtype=np.object_), given.name)
    if not (server.models / name / "1" / "manifest.json").exists():
        assert refusal(client.infer, name, [encoded]).status() == "StatusCode.INVALID_ARGUMENT"
        return
    scores = client.infer(name, [encoded]).as_numpy(output.name)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    colour = ((127 / 255 - mean) / std).astype(np.float32).reshape(1, 3, 1, 1)
    (expected,) = session.run(None, {given.name: np.broadcast_to(colour, given.shape).copy()})

    np.testing.assert_allclose(scores, expected, rtol=1e-4)

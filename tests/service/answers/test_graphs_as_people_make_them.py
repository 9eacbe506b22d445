"""Graphs with outputs that are no tensors, or a batch made dynamic by hand: import and server agree."""

from asyncio import to_thread
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from support.foreign import CLASSES, SIDE, classifier
from support.graphs import write_graph
from support.images import file
from support.serving import encoded, probabilities, serving
from vistazo_export.checks.sample_images import sample_images
from vistazo_export.errors import GraphError
from vistazo_export.foreign.interface import read_interface
from vistazo_export.importer import ImportRequest, import_model
from vistazo_export.progress import Progress
from vistazo_server.engine.graph import read_signature
from vistazo_server.engine.session import create_session


def by_hand(batch: int | str, said: int = 1) -> onnx.ModelProto:
    """Return a graph whose input takes any batch, and whose output still declares one of `said`."""
    model = classifier(ending="Softmax")
    for value, size in ((model.graph.input[0], batch), (model.graph.output[0], said)):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
    return model


def with_aside(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    """Add an output "aside" that is no tensor which can be served."""
    if kind == "map":
        model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
        classes = list(range(CLASSES))
        model.graph.node.append(
            helper.make_node("ZipMap", ["scores"], ["aside"], domain="ai.onnx.ml", classlabels_int64s=classes)
        )
        element = helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
        value = helper.make_value_info("aside", helper.make_sequence_type_proto(element))
    elif kind == "sequence":
        model.graph.node.append(helper.make_node("SequenceConstruct", ["scores"], ["aside"]))
        element = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", CLASSES])
        value = helper.make_value_info("aside", helper.make_sequence_type_proto(element))
    else:
        model.graph.node.append(helper.make_node("Cast", ["scores"], ["aside"], to=TensorProto.BFLOAT16))
        value = helper.make_tensor_value_info("aside", TensorProto.BFLOAT16, ["batch", CLASSES])
    model.graph.output.append(value)
    return model


async def check_served(model: onnx.ModelProto, folder: Path) -> list[str]:
    """Import a graph and serve it beside its bare file: alone and in company it says the same.

    Returns the warnings.
    """
    source, models = folder / "foreign.onnx", folder / "models"
    source.write_bytes(model.SerializeToString())
    said: list[str] = []
    request = ImportRequest(source, "imported", models, preprocess="imagenet", output="scores")
    exported = await to_thread(import_model, request, Progress(warning=said.append))
    write_graph(models, "bare", model)
    images = await to_thread(lambda: [encoded(file(image)) for image in sample_images(3)[:3]])
    async with serving(models, max_batch_size=4) as server:
        alone = [await server.classify(image, model="imported", top_k=CLASSES) for image in images]
        together = await server.classify(*images, model="imported", top_k=CLASSES)
        assert await server.health_of("bare") == "SERVING"
    for one, result in zip(alone, together.results, strict=True):
        assert probabilities(result) == pytest.approx(probabilities(one.results[0]), abs=1e-6)
        assert sum(probabilities(result).values()) == pytest.approx(1, abs=1e-5)
    assert exported.manifest.max_batch_size == 32
    return said


@pytest.mark.parametrize("kind", ["map", "sequence", "bfloat16"])
async def test_an_output_that_cannot_be_served_is_left_aside_and_said(tmp_path: Path, kind: str):
    said = await check_served(with_aside(classifier(ending="Softmax"), kind), tmp_path)

    assert any("left aside" in line and "aside" in line for line in said)


@pytest.mark.parametrize("batch", ["N", "anything", -1])
async def test_a_batch_made_dynamic_by_hand_is_served_in_batches(tmp_path: Path, batch: int | str):
    await check_served(by_hand(batch), tmp_path)


@pytest.mark.parametrize("shape", [(0, 1, CLASSES), (0, 1, 1, CLASSES), (0, CLASSES, 1, 1)])
async def test_scores_among_dimensions_of_one_are_served(tmp_path: Path, shape: tuple[int, ...]):
    model = classifier(ending="Softmax", score="row")
    model.graph.node.append(helper.make_node("Reshape", ["row", "shape"], ["scores"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape), "shape"))
    dims = ["batch", *shape[1:]]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, dims))
    await check_served(model, tmp_path)


@pytest.mark.parametrize("batch", ["N", -1])
def test_a_hand_made_batch_is_read_as_free_and_runs(tmp_path: Path, batch: int | str):
    path = write_graph(tmp_path, "bare", by_hand(batch)) / "model.onnx"
    session = create_session(path, device="cpu", threads=1)
    signature = read_signature(session, path, image_input=None)
    pixels = np.random.default_rng(0).random((3, 3, SIDE, SIDE), np.float32)

    assert signature.is_batched
    assert signature.fixed_batch == 0
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    assert len(onnxruntime.InferenceSession(path, options).run(None, {"pixels": pixels})[0]) == 3


@pytest.mark.parametrize("kind", ["map", "sequence", "bfloat16"])
def test_a_graph_of_nothing_else_is_refused_by_name(tmp_path: Path, kind: str):
    model = with_aside(classifier(ending="Softmax"), kind)
    del model.graph.output[0]
    path = tmp_path / "foreign.onnx"
    path.write_bytes(model.SerializeToString())

    with pytest.raises(GraphError, match="no output that is a tensor which can be served: aside"):
        read_interface(path)

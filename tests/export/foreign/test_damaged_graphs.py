"""Files that began as ONNX: an import refuses them in words or takes them, whatever became of their bytes."""

import random
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from support.foreign import classifier
from vistazo_export.errors import ExportError, GraphError
from vistazo_export.foreign.interface import read_interface
from vistazo_export.importer import ImportRequest, import_model

SEEDS = range(6)
FILES_OF_A_SEED = 40


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the content with some bytes changed, taken out or put in."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at, how = rng.randrange(len(data)), rng.random()
        if how < 0.6:
            data[at] = rng.randrange(256)
        elif how < 0.8:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 5))
    return bytes(data)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_import_of_a_damaged_file_ends_in_words(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    graph = classifier(size=(8, 8), classes=4, ending="Softmax").SerializeToString()
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    refusals = []
    for _ in range(FILES_OF_A_SEED):
        model, models = tmp_path / "model.onnx", tmp_path / "models"
        model.write_bytes(damaged(graph, rng))
        try:
            import_model(ImportRequest(model, "m", models, preprocess="imagenet", labels=str(labels)))
        except ExportError as error:
            refusals.append(str(error))
        shutil.rmtree(models, ignore_errors=True)

    assert len(refusals) > FILES_OF_A_SEED / 2
    assert all(refusals)
    assert [text for text in refusals if "\n" in text] == []


def graph_of(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 8, 8])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 4])
    graph = helper.make_graph(nodes, "g", [given], [made])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Identity", ["y"], ["y"])],
        [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["y"], ["a"])],
        [helper.make_node("Sub", ["x", "y"], ["a"]), helper.make_node("Identity", ["a"], ["y"])],
        [helper.make_node("Flatten", ["x"], ["y"]), helper.make_node("Flatten", ["x"], ["y"])],
        [helper.make_node("Softmax", [""], ["y"])],
        [helper.make_node("Identity", [], ["y"])],
        [helper.make_node("Loop", ["m", "c", "x"], ["y"])],
    ],
    ids=[
        "itself",
        "a circle",
        "its own output",
        "made twice",
        "of nothing",
        "without input",
        "a loop's body",
    ],
)
def test_graphs_that_cannot_be_are_refused(tmp_path: Path, nodes: list[onnx.NodeProto]):
    onnx.save(graph_of(nodes), tmp_path / "model.onnx")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")

    with pytest.raises(GraphError, match=r"is not valid ONNX|goes in a circle"):
        import_model(
            ImportRequest(
                tmp_path / "model.onnx",
                "m",
                tmp_path / "models",
                preprocess="imagenet",
                labels=str(tmp_path / "labels.txt"),
            )
        )


def test_a_type_and_a_name_that_there_are_not_are_named(tmp_path: Path):
    model = graph_of([helper.make_node("Flatten", ["x"], ["y"])])
    content = model.SerializeToString()
    model.graph.input[0].type.tensor_type.elem_type = 81
    onnx.save(model, tmp_path / "type.onnx")
    at = content.index(b"\x0a\x01x\x12", content.index(b"Flatten"))
    (tmp_path / "name.onnx").write_bytes(content[: at + 2] + b"\xdb" + content[at + 3 :])

    assert "type 81" in str(read_interface(tmp_path / "type.onnx").inputs[0])
    with pytest.raises(GraphError, match=r"a tensor's name is no UTF-8: b'\\xdb'"):
        read_interface(tmp_path / "name.onnx")

"""Classifiers as other people's exporters write them: any layout, type, batch, names and ending."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5
SIDE = 8


def classifier(
    *,
    layout: str = "NCHW",
    dtype: int = TensorProto.FLOAT,
    batch: int | str = "batch",
    size: tuple[int | str, int | str] = (SIDE, SIDE),
    channels: int | str = 3,
    weights: int = 3,
    classes: int = CLASSES,
    ending: str = "",
    half: bool = False,
    score: str = "scores",
) -> onnx.ModelProto:
    """Return a graph from the input "pixels" to an output: mean colours, times weights, then `ending`.

    `weights` is the number of channels that the weights are for; with `half`, they and the output are
    float16. `ending` is an operator, "normalised exponentials", or nothing for logits.
    """
    dims = [channels, *size] if layout == "NCHW" else [*size, channels]
    element = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    kind = np.float16 if half else np.float32
    matrix = np.random.default_rng(7).normal(size=(weights, classes)).astype(kind) * 3
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=element),
        helper.make_node("ReduceMean", ["float", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["logits" if ending else score]),
        *_ending(ending, score),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("pixels", dtype, [batch, *dims])],
        [helper.make_tensor_value_info(score, element, [batch, classes])],
        [
            numpy_helper.from_array(np.array([2, 3] if layout == "NCHW" else [1, 2]), "axes"),
            numpy_helper.from_array(matrix, "weights"),
        ],
    )
    return model_of(graph, producer_name="elsewhere", producer_version="3.1")


def model_of(graph: onnx.GraphProto, **fields: str) -> onnx.ModelProto:
    """Return a model of an operator set and format that every ONNX Runtime in use reads."""
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, **fields)


def with_node(model: onnx.ModelProto, node: onnx.NodeProto, shape: Sequence[int | str]) -> onnx.ModelProto:
    """Add a node, whose one output becomes a further float32 output of the graph."""
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    return model


def _ending(ending: str, score: str) -> list[onnx.NodeProto]:
    if not ending:
        return []
    if ending == "normalised exponentials":
        return [
            helper.make_node("Exp", ["logits"], ["exponentials"]),
            helper.make_node("Constant", [], ["last"], value_ints=[1]),
            helper.make_node("ReduceSum", ["exponentials", "last"], ["sum"], keepdims=1),
            helper.make_node("Div", ["exponentials", "sum"], [score]),
        ]
    return [helper.make_node(ending, ["logits"], [score])]

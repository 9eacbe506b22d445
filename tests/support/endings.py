"""Classifiers of uint8 images by how they end: what scores may be, and what may come after that."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support.foreign import CLASSES, classifier

node = helper.make_node

# 8 bits for 0 to 1, as quantisers choose them, and for logits.
CONSTANTS = {
    "unit_scale": np.float32(1 / 255),
    "unit_zero": np.uint8(0),
    "coarse_scale": np.float32(1 / 127),
    "coarse_zero": np.int8(0),
    "wide_scale": np.float32(0.05),
    "wide_zero": np.uint8(128),
    "half": np.float32(0.5),
    "one": np.float32(1),
    "last_axis": np.array([-1]),
    "middle_axis": np.array([1]),
}


def ended(
    *nodes: onnx.NodeProto,
    classes: int = CLASSES,
    dims: Sequence[int] | None = None,
    element: int = TensorProto.FLOAT,
    scale: float = 1 / 200,
    bias: float = 0.0,
    functions: Sequence[onnx.FunctionProto] = (),
    **constants: NDArray[np.generic],
) -> onnx.ModelProto:
    """Return a classifier of 8×8 images, "pixels", whose `nodes` make its output "scores" of "logits".

    The logits, batch × classes, are mean colours times weights times `scale`, plus `bias`.
    """
    model = classifier(layout="NHWC", dtype=TensorProto.UINT8, classes=classes, score="mixed")
    graph = model.graph
    graph.node.extend(
        [node("Mul", ["mixed", "scale"], ["scaled"]), node("Add", ["scaled", "bias"], ["logits"])]
    )
    graph.node.extend(nodes)
    given = CONSTANTS | constants | {"scale": np.float32(scale), "bias": np.float32(bias)}
    used = {name for each in graph.node for name in each.input}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in given.items() if name in used
    )
    shape = ["batch", *((classes,) if dims is None else dims)]
    graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", element, shape))
    if any(each.domain == "com.microsoft" for each in graph.node):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for function in functions:
        model.functions.append(function)
        model.opset_import.append(helper.make_opsetid(function.domain, 1))
    return model


def rounded(takes: str, gives: str, bits: str = "unit") -> list[onnx.NodeProto]:
    """Return the nodes that write a tensor in 8 bits and back."""
    return [
        node("QuantizeLinear", [takes, f"{bits}_scale", f"{bits}_zero"], [f"{takes}_q"]),
        node("DequantizeLinear", [f"{takes}_q", f"{bits}_scale", f"{bits}_zero"], [gives]),
    ]


def own_sigmoid() -> onnx.FunctionProto:
    """Return a sigmoid as some exporters write layers: a function of the model's own."""
    return helper.make_function(
        "pkg.layers",
        "aten_sigmoid",
        ["x"],
        ["y"],
        [node("Sigmoid", ["x"], ["y"])],
        [helper.make_opsetid("", 18)],
    )

"""Graphs that are no image classifiers of ours: many inputs, any datatype, any batch; without a manifest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support.foreign import model_of

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}

Dims = Sequence[int | str]


def write_graph(repository: Path, name: str, model: onnx.ModelProto, *, version: int = 1) -> Path:
    """Write a model with nothing beside it, and return its version's folder."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[str, Dims]],
    outputs: dict[str, tuple[str, Dims]],
    **constants: NDArray[np.generic],
) -> onnx.ModelProto:
    """Return a model of these nodes; inputs and outputs by name, each with its datatype and shape."""

    def infos(tensors: dict[str, tuple[str, Dims]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, ONNX_TYPES[datatype], list(shape))
            for name, (datatype, shape) in tensors.items()
        ]

    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return model_of(helper.make_graph(list(nodes), "graph", infos(inputs), infos(outputs), initializers))


def identity(
    datatype: str = "FP32", shape: Dims = ("batch", 3), *, takes: str = "x", gives: str = "y"
) -> onnx.ModelProto:
    """Return a model whose output is its input."""
    return graph(
        [helper.make_node("Identity", [takes], [gives])],
        {takes: (datatype, shape)},
        {gives: (datatype, shape)},
    )


def sum_and_difference(shape: Dims = ("batch", 16), datatype: str = "INT32") -> onnx.ModelProto:
    """Return Triton's own example: OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1."""
    return graph(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        {"INPUT0": (datatype, shape), "INPUT1": (datatype, shape)},
        {"OUTPUT0": (datatype, shape), "OUTPUT1": (datatype, shape)},
    )


def mean_of_any_size() -> onnx.ModelProto:
    """Return a model of images of any size, N×3×H×W: the mean of each channel, and the sum of its batch.

    A sample's `company` is the number of samples that its run had.
    """
    return graph(
        [
            helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
            helper.make_node("Shape", ["image"], ["shape"]),
            helper.make_node("Gather", ["shape", "first"], ["size"], axis=0),
            helper.make_node("ReduceMin", ["image", "all"], ["least"], keepdims=0),
            helper.make_node("Cast", ["least"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Mul", ["whole", "nothing"], ["zeros"]),
            helper.make_node("Add", ["zeros", "size"], ["company"]),
        ],
        {"image": ("FP32", ("batch", 3, "height", "width"))},
        {"mean": ("FP32", ("batch", 3)), "company": ("INT64", ("batch",))},
        axes=np.array([2, 3]),
        all=np.array([1, 2, 3]),
        first=np.array(0),
        nothing=np.array(0),
    )

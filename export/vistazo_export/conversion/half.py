"""fp16 variants, for CUDA: half the memory, and the tensor cores.

Weights and computation become float16; images stay uint8, the normalisation and the logits float32.
Made from the finished fp32 graph, so that what the exporter folded together is rounded once.
"""

from collections.abc import Iterator, MutableSequence, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vistazo_export.conversion.onnx_export import normalisation_nodes
from vistazo_export.errors import GraphError
from vistazo_export.publishing.manifest import OUTPUT_TENSOR

LARGEST = float(np.finfo(np.float16).max)

ZERO = numpy_helper.from_array(np.zeros(1, np.float16))


def write_fp16(source: Path, target: Path) -> None:
    """Write the fp16 variant of the fp32 graph at `source` to `target`.

    Raises GraphError where a weight is too large for float16.
    """
    model = onnx.load(source)
    graph = model.graph
    normalisation = normalisation_nodes(graph)
    in_float = {node.name for node in normalisation}
    halved = [node for node in graph.node if node.name not in in_float]

    _part_initializers(graph, normalisation, halved)
    kept = {name for node in normalisation for name in node.input}
    for tensor in _tensors(graph, halved):
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            _round(tensor)
    for node in halved:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        if node.op_type == "ConstantOfShape" and not node.attribute:
            # Without a value it gives float32 zeros.
            node.attribute.append(helper.make_attribute("value", ZERO))

    last = normalisation[-1]
    normalised, logits = last.output[0], f"{OUTPUT_TENSOR}_fp16"
    last.output[0] = f"{normalised}_fp32"
    position = list(graph.node).index(last) + 1
    graph.node.insert(position, _cast(last.output[0], normalised, TensorProto.FLOAT16))
    for node in halved:
        _rename(node.input, OUTPUT_TENSOR, logits)
        _rename(node.output, OUTPUT_TENSOR, logits)
    graph.node.append(_cast(logits, OUTPUT_TENSOR, TensorProto.FLOAT))
    # It has the types from before.
    del graph.value_info[:]
    onnx.save(model, target)


def _part_initializers(
    graph: onnx.GraphProto, normalisation: Sequence[onnx.NodeProto], halved: Sequence[onnx.NodeProto]
) -> None:
    """Give the normalisation tensors of its own, where the exporter made one of two equal ones."""
    used = {name for node in halved for name in node.input}
    for tensor in list(graph.initializer):
        if tensor.name in used and any(tensor.name in node.input for node in normalisation):
            own = graph.initializer.add()
            own.CopyFrom(tensor)
            own.name = f"{tensor.name}_fp32"
            for node in normalisation:
                _rename(node.input, tensor.name, own.name)


def _tensors(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> Iterator[TensorProto]:
    """Give the graph's initializers and the tensors inside the nodes."""
    yield from graph.initializer
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def _round(tensor: TensorProto) -> None:
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    if largest > LARGEST:
        raise GraphError(f"{tensor.name} holds {largest:.1e}, too large for fp16")
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for index, name in enumerate(names):
        if name == old:
            names[index] = new


def _cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"node_{target}_cast", to=dtype)

"""Where an output's numbers come from: the operator that makes them, and whether it holds them to a range."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import inliner

from vistazo_export.errors import GraphError

# They change a tensor's shape or type, choose among its numbers, or do nothing at all.
CARRYING = {
    "Cast",
    "Dropout",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}

# They write numbers in few bits and back. A quantised graph ends in them, whatever its last layer is.
QUANTIZING = {"DequantizeLinear", "QuantizeLinear"}

# The same layer by the name that quantisation gives it.
PLAIN_NAMES = {"QLinearSigmoid": "Sigmoid", "QLinearSoftmax": "Softmax"}

# What these give is not held to any range, so it is logits though a few samples may look otherwise.
UNBOUNDED = {
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "Gemm",
    "LogSoftmax",
    "MatMul",
    "MatMulInteger",
    "MatMulNBits",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}

# What these give has no range where what they take has none; the mean of probabilities is one, too.
PASSING = {
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Concat",
    "Elu",
    "Gelu",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSwish",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "MaxPool",
    "Mean",
    "Mul",
    "PRelu",
    "QLinearAdd",
    "QLinearAveragePool",
    "QLinearConcat",
    "QLinearGlobalAveragePool",
    "QLinearMul",
    "ReduceMean",
    "Relu",
    "Sub",
    "Sum",
}


# What holds numbers to 0 to 1.
SQUASHING = {"HardSigmoid", "QLinearSigmoid", "QLinearSoftmax", "Sigmoid", "Softmax"}

# They move or stretch a range that numbers are held to, and leave them held to one.
RESCALING = {"Add", "Clip", "Div", "Max", "Mean", "Min", "Mul", "Neg", "Round", "Sub", "Sum"}


@dataclass(frozen=True)
class Origin:
    """What computes an output's numbers."""

    operator: str = ""
    """Such as "Softmax", whatever carries or quantises them later; empty: none."""
    is_quantized: bool = False
    """Whether they were rounded to few bits after that, so that probabilities need not sum to 1."""
    is_unbounded: bool = False
    """Whether they come from a layer that holds them to no range."""
    is_rescaled: bool = False
    """Whether they were between 0 and 1, and were given another range since, such as 0 to 100."""


def origins(model: onnx.ModelProto) -> dict[str, Origin]:
    """Return the origin of each output of the graph, whose weights need not be loaded. Raises GraphError."""
    if model.functions:
        # An exporter that writes each layer as a function hides what is in it.
        try:
            model = inliner.inline_local_functions(model)
        # onnx's own errors: plain Exceptions.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise GraphError(f"the graph's functions cannot be put in place: {reason}") from error
    makers = {output: node for node in model.graph.node for output in node.output}
    return {value.name: _origin(makers, value.name) for value in model.graph.output}


def _origin(makers: Mapping[str, onnx.NodeProto], tensor: str) -> Origin:
    node, is_quantized = _maker(makers, tensor)
    if node is None:
        return Origin(is_quantized=is_quantized)
    operator = PLAIN_NAMES.get(node.op_type, node.op_type)
    if operator == "Concat":
        heads = [_maker(makers, name) for name in node.input]
        if all(head is not None and head.op_type == "Sigmoid" for head, _ in heads):
            # One head a label.
            operator, is_quantized = "Sigmoid", is_quantized or any(rounded for _, rounded in heads)
    is_quantized = is_quantized or node.op_type in PLAIN_NAMES
    is_unbounded = _reaches(makers, tensor, UNBOUNDED, through=PASSING)
    is_rescaled = operator in RESCALING and _reaches(makers, tensor, SQUASHING, through=RESCALING)
    return Origin(operator, is_quantized, is_unbounded, is_rescaled and not is_unbounded)


def _maker(makers: Mapping[str, onnx.NodeProto], tensor: str) -> tuple[onnx.NodeProto | None, bool]:
    """Return the node that makes a tensor's numbers, and whether they are rounded to few bits afterwards."""
    node, is_quantized, seen = makers.get(tensor), False, {tensor}
    while node is not None and node.op_type in CARRYING | QUANTIZING and node.input:
        is_quantized = is_quantized or node.op_type in QUANTIZING
        if node.input[0] in seen:
            raise GraphError(f"the graph goes in a circle at {node.input[0]!r}")
        seen.add(node.input[0])
        node = makers.get(node.input[0])
    return node, is_quantized


def _reaches(
    makers: Mapping[str, onnx.NodeProto], tensor: str, operators: set[str], *, through: set[str]
) -> bool:
    """Say whether one of `operators` is reached backwards from `tensor`, by way of CARRYING and `through`."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        node = makers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type in operators:
            return True
        before = []
        if node.op_type in CARRYING | QUANTIZING:
            before = list(node.input[:1])
        elif node.op_type in through:
            before = list(node.input)
        waiting += [name for name in before if name not in seen]
        seen.update(before)
    return False

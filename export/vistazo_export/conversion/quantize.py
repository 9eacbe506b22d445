"""int8 variants: static QDQ quantization, calibrated on real images.

Activations are unsigned 8 bits per tensor, weights signed 7 bits per channel: on a CPU without VNNI
the products of full 8-bit weights overflow 16 bits and saturate, and on one with it the smaller range
costs no time. Images stay uint8 and logits float32; the normalisation and what only averages or
reshapes the last layer's output stay float32, since 256 steps would make equal logits of close ones.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from vistazo_export.checks.parity import Pixels
from vistazo_export.conversion.onnx_export import normalisation_nodes
from vistazo_export.errors import ExportError, GraphError
from vistazo_export.publishing.manifest import INPUT_TENSOR, OUTPUT_TENSOR

# Those that ONNX Runtime computes in int8, and those that merely pass values on. Others, such as
# Softmax and LayerNormalization, stay float32: they lose accuracy and win no time.
OPERATORS = (
    "Conv", "Gemm", "MatMul",
    "Relu", "Clip", "Add", "Mul", "Concat",
    "MaxPool", "AveragePool", "GlobalAveragePool",
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split",
)  # fmt: skip

# What may stand between the last layer with weights and the logits.
TAIL = {"AveragePool", "Flatten", "GlobalAveragePool", "ReduceMean", "Reshape", "Squeeze"}

# Without this mark quantize_static asks for a preprocessing that torch's exporter has done already.
PREPROCESSED = ("onnx.quant.pre_process", "onnxruntime.quant")


class _Reader(CalibrationDataReader):  # type: ignore[misc] # ships no type information
    """Hands the batches to the calibration, one by one."""

    def __init__(self, batches: Iterator[Pixels]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next batch by the name of its tensor, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_TENSOR: batch}


def write_int8(source: Path, target: Path, batches: Iterator[Pixels]) -> None:
    """Write the int8 variant of the fp32 graph at `source` to `target`, calibrated on `batches`.

    Raises GraphError where the graph cannot be quantized, and whatever `batches` raises.
    """
    model = onnx.load(source)
    model.metadata_props.add(key=PREPROCESSED[0], value=PREPROCESSED[1])
    in_float = [node.name for node in (*normalisation_nodes(model.graph), *_tail(model.graph))]
    try:
        quantize_static(
            model,
            target,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            nodes_to_exclude=in_float,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    except (ExportError, OSError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise GraphError(f"ONNX Runtime cannot quantize the graph: {reason}") from error

    quantized = onnx.load(target)
    _free_logits(quantized.graph)
    # Notes of the tool's to itself.
    quantized.metadata_props.clear()
    onnx.save(quantized, target)


def _tail(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Give the nodes between the logits and the last layer that computes, last first."""
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get(OUTPUT_TENSOR)
    while node is not None and node.op_type in TAIL:
        yield node
        node = makers.get(node.input[0])


def _free_logits(graph: onnx.GraphProto) -> None:
    """Let the last layer give float32 logits, where they would be rounded to 256 steps first."""
    makers = {output: node for node in graph.node for output in node.output}
    dequantize = makers[OUTPUT_TENSOR]
    quantize = makers.get(dequantize.input[0])
    if dequantize.op_type != "DequantizeLinear" or quantize is None or quantize.op_type != "QuantizeLinear":
        return
    last = makers[quantize.input[0]]
    last.output[list(last.output).index(quantize.input[0])] = OUTPUT_TENSOR
    graph.node.remove(dequantize)
    graph.node.remove(quantize)
    used = {name for node in graph.node for name in node.input}
    for unused in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(unused)

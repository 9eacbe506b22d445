"""What an ONNX file says about itself: its inputs and outputs, how it ends, where its weights lie."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from vistazo_export.errors import GraphError
from vistazo_export.foreign.origin import Origin, origins

# As Open Inference names element types.
DTYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.STRING: "BYTES",
}

FLOATS = ("FP32", "FP16", "FP64")

QUANTIZED = {"ConvInteger", "DequantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}

# model.onnx is one protobuf message, which cannot be larger.
MOST_BYTES = 2 << 30

# The folder has files of ours under these names.
RESERVED = ("model.onnx", "manifest.json")


@dataclass(frozen=True)
class TensorInfo:
    """An input or an output of a graph."""

    name: str
    dtype: str
    """Such as "FP32"; "?" where it is no tensor."""
    shape: tuple[int | None, ...] | None
    """None for a size that may change from call to call; None for all where the graph does not say it."""

    @property
    def is_servable(self) -> bool:
        """Whether it is a tensor of a type that Open Inference has and ONNX Runtime gives to NumPy."""
        return self.dtype in DTYPES.values() and self.dtype != "BF16"

    def __str__(self) -> str:
        """Return such as "data_0 (FP32 1×3×224×224)"."""
        if self.dtype == "?":
            return f"{self.name} (a sequence, a map or another value that is no tensor)"
        sizes = "×".join("?" if size is None else str(size) for size in self.shape or ())
        return f"{self.name} ({' '.join(filter(None, (self.dtype, sizes)))})"


@dataclass(frozen=True)
class OnnxInterface:
    """What can be read from a model.onnx without running it."""

    inputs: tuple[TensorInfo, ...]
    """Those that must be fed: initializers that a caller may override are none."""
    outputs: tuple[TensorInfo, ...]
    """Those that can be served."""
    aside: tuple[TensorInfo, ...]
    """Other outputs, such as the maps of scikit-learn's ZipMap."""
    origins: dict[str, Origin]
    """Output → what computes its numbers."""
    external_files: tuple[str, ...]
    """Where the weights outside the file lie, relative to it, with forward slashes, sorted."""
    opset: int
    """Of the default domain; 0 where no operator is from there."""
    precision: str
    """"fp32", "fp16" or "int8": what most of the weights are."""
    producer: str
    """What wrote the file, such as "pytorch 2.1.0"; may be empty."""


def read_interface(path: Path) -> OnnxInterface:
    """Read the ONNX file at `path`; its weights in other files are not looked at.

    Raises GraphError where it is no ONNX or names files outside its folder.
    """
    if not path.is_file():
        raise GraphError(f"no ONNX file {path}")
    if path.stat().st_size > MOST_BYTES:
        raise GraphError(f"{path.name} is larger than 2 GiB; its weights belong into an external file")
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise GraphError(f"cannot read {path}: {error.strerror or error}") from error
    # google.protobuf's DecodeError, a plain Exception.
    except Exception as error:
        raise GraphError(f"{path.name} is not ONNX: {' '.join(str(error).split())[:200]}") from error
    graph = model.graph
    if not graph.node:
        raise GraphError(f"{path.name} is not ONNX, or its graph is empty")
    given = {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    outputs = tuple(_info(value) for value in graph.output)
    if not any(output.is_servable for output in outputs):
        listed = ", ".join(map(str, outputs)) or "none"
        raise GraphError(f"{path.name} has no output that is a tensor which can be served: {listed}")
    return OnnxInterface(
        inputs=tuple(_info(value) for value in graph.input if value.name not in given),
        outputs=tuple(output for output in outputs if output.is_servable),
        aside=tuple(output for output in outputs if not output.is_servable),
        origins=origins(model),
        external_files=tuple(sorted({_location(path, tensor) for tensor in _external_tensors(model)})),
        opset=next((opset.version for opset in model.opset_import if opset.domain in {"", "ai.onnx"}), 0),
        precision=_precision(graph),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
    )


def check_model(path: Path) -> None:
    """Raise GraphError where the ONNX checker refuses the file at `path` or its external files.

    Shapes that the file declares otherwise than they are inferred are no fault: graphs whose
    batch was made dynamic by hand are so, and what they really give the import's own runs show.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    # The checker's and shape inference's errors: plain Exceptions.
    except Exception as error:
        if "Inferred shape and existing shape differ" in str(error):
            return
        raise GraphError(f"{path.name} is not valid ONNX: {' '.join(str(error).split())[:200]}") from error


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    name: object = value.name
    if not isinstance(name, str):  # but bytes, as protobuf leaves what is no UTF-8
        raise GraphError(f"a tensor's name is no UTF-8: {name!r:.100}")
    if not value.type.HasField("tensor_type"):
        return TensorInfo(value.name, "?", None)
    dtype = DTYPES.get(kind.elem_type) or type_name(kind.elem_type)
    if not kind.HasField("shape"):
        return TensorInfo(value.name, dtype, None)
    # A dimension may have a name, a number, or nothing; exporters also write 0 or -1 for "any".
    sizes = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    return TensorInfo(value.name, dtype, sizes)


def type_name(number: int) -> str:
    """Return what ONNX calls an element type, also one that it does not have."""
    known = number in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(number)) if known else f"type {number}"


def _location(path: Path, tensor: TensorProto) -> str:
    """Return where a tensor's external data lies, checked to be inside the folder."""
    location = ExternalDataInfo(tensor).location
    parts = PurePosixPath(location)
    if not location or parts.is_absolute() or ".." in parts.parts or "\\" in location:
        raise GraphError(f"{path.name} looks for weights outside its folder: {location!r}")
    if str(parts) in RESERVED:
        raise GraphError(f"{path.name} looks for weights in {location!r}, a name that is taken")
    return str(parts)


def _external_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    nodes = (node for function in model.functions for node in function.node)
    for tensor in (*_graph_tensors(model.graph), *_node_tensors(nodes)):
        if uses_external_data(tensor):
            yield tensor


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _precision(graph: onnx.GraphProto) -> str:
    if any(node.op_type in QUANTIZED for node in graph.node):
        return "int8"
    elements: dict[int, int] = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in _graph_tensors(graph):
        if tensor.data_type in elements:
            elements[tensor.data_type] += math.prod(tensor.dims)
    return "fp16" if elements[TensorProto.FLOAT16] > elements[TensorProto.FLOAT] else "fp32"

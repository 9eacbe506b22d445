"""The nodes of a model.onnx with what decides where their samples are: attributes, small constants, ranks.

Weights are passed over, so that a file of any size is read in milliseconds.
"""

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vistazo_onnx.wire import BYTES, VARINT, Data, Span, fields, messages, numbers

# Numbers of onnx.proto, which never change. TensorProto's types, and how each lies in raw_data.
_RAW: Final = {6: "i", 7: "q", 9: "?"}

# Shapes, axes and places are shorter; longer ones are weights.
_MOST_NUMBERS: Final = 64


@dataclass(frozen=True, slots=True)
class Constant:
    """A weight or constant: its rank, and its numbers where they are few and whole."""

    rank: int
    numbers: tuple[int, ...] | None = None


@dataclass(slots=True)
class Node:
    """One operator of a graph, with the attributes that say which dimensions it is about."""

    operator: str
    domain: str = ""
    """Empty: ONNX's own."""
    overload: str = ""
    inputs: list[str] = field(default_factory=list)
    """An empty name: left out."""
    outputs: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    lists: dict[str, tuple[int, ...]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    graphs: dict[str, "Graph"] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    """Inside a function: attribute → the function's attribute that it takes its value from."""


@dataclass(slots=True)
class Graph:
    """A graph, one of its subgraphs, or the body of a function."""

    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, int | None] = field(default_factory=dict)
    """Name → rank, None where it is not said. Not those that are constants."""
    outputs: list[str] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    opset: int = 0
    """Of ONNX's own operators; 0: as around it."""


@dataclass(slots=True)
class OnnxModel:
    """A graph and the functions that its nodes may call, by domain, name and overload."""

    graph: Graph
    functions: dict[tuple[str, str, str], Graph] = field(default_factory=dict)


def read_model(path: Path) -> OnnxModel:
    """Return the graph in the file at `path`. Raises OSError, or ValueError for what is no ONNX file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _model(data, (0, len(data)))
        except (IndexError, RecursionError, struct.error) as error:
            raise ValueError(f"{path} is no ONNX file: {error}") from error


def _model(data: Data, span: Span) -> OnnxModel:
    model = OnnxModel(Graph())
    for graph in messages(data, span, 7):
        model.graph = _graph(data, graph)
    model.graph.opset = _opset(data, span, 8)
    for function in messages(data, span, 25):
        key = tuple(_text(data, function, number) for number in (10, 1, 13))
        model.functions[(_domain(key[0]), key[1], key[2])] = Graph(
            nodes=[_node(data, node) for node in messages(data, function, 7)],
            inputs={_decoded(data, name): None for name in messages(data, function, 4)},
            outputs=[_decoded(data, name) for name in messages(data, function, 5)],
            opset=_opset(data, function, 9),
        )
    return model


def _graph(data: Data, span: Span) -> Graph:
    graph = Graph()
    for number, wire_type, *value in fields(data, span):
        at: Span = (value[0], value[1])
        if wire_type != BYTES:
            continue
        if number == 1:
            graph.nodes.append(_node(data, at))
        elif number == 5:
            graph.constants[_text(data, at, 8)] = _constant(data, at)
        elif number == 15:
            for values in messages(data, at, 1):
                graph.constants[_text(data, values, 8)] = Constant(sum(1 for _ in numbers(data, at, 3)))
        elif number == 11:
            graph.inputs[_text(data, at, 1)] = _rank(data, at)
        elif number == 12:
            graph.outputs.append(_text(data, at, 1))
    for name in graph.constants:
        graph.inputs.pop(name, None)
    return graph


def _node(data: Data, span: Span) -> Node:
    node = Node("")
    for number, wire_type, *value in fields(data, span):
        at: Span = (value[0], value[1])
        if wire_type != BYTES:
            continue
        if number == 1:
            node.inputs.append(_decoded(data, at))
        elif number == 2:
            node.outputs.append(_decoded(data, at))
        elif number == 4:
            node.operator = _decoded(data, at)
        elif number == 7:
            node.domain = _domain(_decoded(data, at))
        elif number == 8:
            node.overload = _decoded(data, at)
        elif number == 5:
            _attribute(data, at, node)
    return node


def _attribute(data: Data, span: Span, node: Node) -> None:
    name = _text(data, span, 1)
    for number, wire_type, *value in fields(data, span):
        at: Span = (value[0], value[1])
        if number == 3 and wire_type == VARINT:
            node.numbers[name] = next(iter(numbers(data, span, 3)))
        elif number == 8 and name not in node.lists:
            node.lists[name] = tuple(numbers(data, span, 8))
        elif number == 4 and wire_type == BYTES:
            node.texts[name] = _decoded(data, at)
        elif number == 5 and wire_type == BYTES:
            node.constants[name] = _constant(data, at)
        elif number == 6 and wire_type == BYTES:
            node.graphs[name] = _graph(data, at)
        elif number == 11 and wire_type == BYTES:
            node.graphs[f"{name}[{len(node.graphs)}]"] = _graph(data, at)
        elif number == 21 and wire_type == BYTES:
            node.references[name] = _decoded(data, at)


def _constant(data: Data, span: Span) -> Constant:
    dims = tuple(numbers(data, span, 1))
    count = math.prod(dims)
    kind = next(iter(numbers(data, span, 2)), 0)
    if kind not in _RAW or not 0 <= count <= _MOST_NUMBERS:
        return Constant(len(dims))
    for start, end in messages(data, span, 9):
        if end - start == count * struct.calcsize(f"<{_RAW[kind]}"):
            return Constant(len(dims), struct.unpack(f"<{count}{_RAW[kind]}", data[start:end]))
    found = tuple(numbers(data, span, 7 if kind == 7 else 5))
    return Constant(len(dims), found if len(found) == count else None)


def _rank(data: Data, span: Span) -> int | None:
    """Return the rank of the tensor that a ValueInfoProto describes."""
    for kind in messages(data, span, 2):
        for tensor in messages(data, kind, 1):
            for shape in messages(data, tensor, 2):
                return sum(1 for _ in messages(data, shape, 1))
    return None


def _opset(data: Data, span: Span, wanted: int) -> int:
    for imported in messages(data, span, wanted):
        if not _domain(_text(data, imported, 1)):
            return next(iter(numbers(data, imported, 2)), 0)
    return 0


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _text(data: Data, span: Span, wanted: int) -> str:
    return next((_decoded(data, at) for at in messages(data, span, wanted)), "")


def _decoded(data: Data, span: Span) -> str:
    return bytes(data[span[0] : span[1]]).decode("utf-8", errors="replace")

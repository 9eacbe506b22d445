"""What must be known of a model.onnx before ONNX Runtime opens it, read without a package for it."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Field numbers of onnx.proto, which never change.
_MODEL_GRAPH: Final = 7
_GRAPH_NODE: Final = 1
_GRAPH_INITIALIZER: Final = 5
_NODE_ATTRIBUTE: Final = 5
_ATTRIBUTE_TENSOR: Final = 5
_TENSOR_DATA_TYPE: Final = 2
_FLOAT16: Final = 10

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Span = tuple[int, int]


def has_half_weights(path: Path) -> bool:
    """Return whether any weight or constant of the graph is FP16; False for what is no ONNX file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(
                kind == _FLOAT16
                for tensor in _tensors(data)
                for kind in _numbers(data, tensor, _TENSOR_DATA_TYPE)
            )
    except (OSError, ValueError, IndexError):
        return False


def _tensors(data: mmap.mmap) -> Iterator[Span]:
    """Yield where the weights and the constants of the graph are."""
    for graph in _messages(data, (0, len(data)), _MODEL_GRAPH):
        yield from _messages(data, graph, _GRAPH_INITIALIZER)
        for node in _messages(data, graph, _GRAPH_NODE):
            for attribute in _messages(data, node, _NODE_ATTRIBUTE):
                yield from _messages(data, attribute, _ATTRIBUTE_TENSOR)


def _messages(data: mmap.mmap, span: Span, wanted: int) -> Iterator[Span]:
    """Yield where the messages in field `wanted` of the message at `span` are."""
    for field, wire_type, start, end in _fields(data, span):
        if field == wanted and wire_type == _BYTES:
            yield start, end


def _numbers(data: mmap.mmap, span: Span, wanted: int) -> Iterator[int]:
    for field, wire_type, start, _ in _fields(data, span):
        if field == wanted and wire_type == _VARINT:
            yield _varint(data, start)[0]


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field of the message at `span`: number, wire type, and where its value is."""
    at, end = span
    while at < end:
        key, at = _varint(data, at)
        wire_type = key & 7
        start = at
        if wire_type == _VARINT:
            _, at = _varint(data, at)
        elif wire_type == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {start}")
        if at > end:
            raise ValueError(f"a field ends at byte {at}, its message at {end}")
        yield key >> 3, wire_type, start, at


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7

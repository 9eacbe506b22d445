"""What must be known of a model.onnx before ONNX Runtime opens it, read without a package for it."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vistazo_onnx.wire import Span, messages, numbers

# Field numbers of onnx.proto, which never change.
_MODEL_GRAPH: Final = 7
_GRAPH_NODE: Final = 1
_GRAPH_INITIALIZER: Final = 5
_NODE_ATTRIBUTE: Final = 5
_ATTRIBUTE_TENSOR: Final = 5
_TENSOR_DATA_TYPE: Final = 2
_FLOAT16: Final = 10


def has_half_weights(path: Path) -> bool:
    """Return whether any weight or constant of the graph is FP16; False for what is no ONNX file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(
                kind == _FLOAT16
                for tensor in _tensors(data)
                for kind in numbers(data, tensor, _TENSOR_DATA_TYPE)
            )
    except (OSError, ValueError, IndexError):
        return False


def _tensors(data: mmap.mmap) -> Iterator[Span]:
    """Yield where the weights and the constants of the graph are."""
    for graph in messages(data, (0, len(data)), _MODEL_GRAPH):
        yield from messages(data, graph, _GRAPH_INITIALIZER)
        for node in messages(data, graph, _GRAPH_NODE):
            for attribute in messages(data, node, _NODE_ATTRIBUTE):
                yield from messages(data, attribute, _ATTRIBUTE_TENSOR)

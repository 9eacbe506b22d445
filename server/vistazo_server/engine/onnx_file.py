"""What must be known of a model.onnx before ONNX Runtime opens it, read without a package for it."""

import mmap
import os
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
_TENSOR_EXTERNAL_DATA: Final = 13
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2
_FLOAT16: Final = 10

# Files of weights that one message names.
_MOST_FILES: Final = 3


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


def missing_weights(path: Path) -> list[str]:
    """Return files of weights that the graph names and that are not there: a few, where there are many."""
    missing: list[str] = []
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for tensor in _tensors(data):
                for location in _locations(data, tensor):
                    is_new = location not in missing and "\0" not in location
                    if is_new and not os.path.exists(path.parent / location):  # noqa: PTH110  never raises
                        missing.append(location)
                if len(missing) >= _MOST_FILES:
                    break
    except (OSError, ValueError, IndexError):
        return missing  # no more of it can be read
    return missing


def _locations(data: mmap.mmap, tensor: Span) -> Iterator[str]:
    """Yield the files that a tensor says its values are in."""
    for entry in messages(data, tensor, _TENSOR_EXTERNAL_DATA):
        for start, end in messages(data, entry, _ENTRY_KEY):
            if data[start:end] == b"location":
                for first, last in messages(data, entry, _ENTRY_VALUE):
                    yield data[first:last].decode(errors="replace")


def _tensors(data: mmap.mmap) -> Iterator[Span]:
    """Yield where the weights and the constants of the graph are."""
    for graph in messages(data, (0, len(data)), _MODEL_GRAPH):
        yield from messages(data, graph, _GRAPH_INITIALIZER)
        for node in messages(data, graph, _GRAPH_NODE):
            for attribute in messages(data, node, _NODE_ATTRIBUTE):
                yield from messages(data, attribute, _ATTRIBUTE_TENSOR)

"""What is attacked: image models, small, slow and of many classes; and two of free sizes, dear and cheap."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from support.graphs import graph, mean_of_any_size, write_graph
from support.tiny import tiny_manifest, tiny_model, write_model

MODELS = ("tiny", "slow", "wide", "free", "means")

SLOW_COST = 120
"""About 40 ms for a sample on one core."""

CLASSES = 10_000
"""Of the model `wide`: an answer with all of them is a quarter of a megabyte."""

LEAST_SIDE = 5
"""Of a sample of `free`; the graph fails at smaller ones, as its convolutions have no padding."""

SETTINGS = """
[slow]
max_batch_size = 1

[free]
max_batch_size = 8
"""
"""Of single models: fixed, as to find them out takes most of a start."""

_RANDOM = np.random.default_rng(0)
_FIRST = _RANDOM.normal(size=(16, 3, 3, 3)).astype(np.float32) * 0.1
_SECOND = _RANDOM.normal(size=(32, 16, 3, 3)).astype(np.float32) * 0.1


def free_model() -> onnx.ModelProto:
    """Return convolutions of any height and width, N×3×H×W → N×32, which cost what the sample's size is."""
    return graph(
        [
            helper.make_node("Conv", ["x", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "second"], ["c"]),
            helper.make_node("ReduceMean", ["c", "axes"], ["y"], keepdims=0),
        ],
        {"x": ("FP32", ("batch", 3, "height", "width"))},
        {"y": ("FP32", ("batch", 32))},
        first=_FIRST,
        second=_SECOND,
        axes=np.array([2, 3]),
    )


def free_sample(colour: tuple[float, float, float], height: int, width: int) -> NDArray[np.float32]:
    """Return a sample of one colour, 3×H×W."""
    return np.broadcast_to(np.array(colour, np.float32)[:, None, None], (3, height, width)).copy()


def free_answer(colour: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return what `free` says of a sample of one colour, whatever its size."""
    first = np.maximum(_FIRST.sum(axis=(2, 3)) @ np.array(colour, np.float32), 0)
    answer: NDArray[np.float32] = _SECOND.sum(axis=(2, 3)) @ first
    return answer


def write_models(repository: Path) -> None:
    """Write all of them."""
    write_model(repository, "tiny")
    write_model(repository, "slow", model=tiny_model(cost=SLOW_COST))
    wide = tiny_model(classes=CLASSES)
    labels = ("red", "green", "blue", *(f"class {number}" for number in range(3, CLASSES)))
    manifest = tiny_manifest("wide", wide.SerializeToString(), labels=labels)
    write_model(repository, "wide", model=wide, manifest=manifest)
    write_graph(repository, "free", free_model())
    write_graph(repository, "means", mean_of_any_size())

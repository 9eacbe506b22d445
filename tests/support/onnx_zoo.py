"""Small graphs in the manner of Triton's own test models, written without a manifest."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from support.graphs import ONNX_TYPES, Dims, graph, identity, sum_and_difference, write_graph
from support.tiny import tiny_manifest, tiny_model, write_model

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
"""The onnx package's classification networks: real graphs, whose weights are made when they run."""

LIGHT_NAMES = tuple(sorted(path.stem.removeprefix("light_") for path in LIGHT.glob("light_*.onnx")))

IDENTITY_TYPES = [name for name in ONNX_TYPES if name != "BF16"]
"""Those that are served."""


def _identity(datatype: str, shape: Dims) -> onnx.ModelProto:
    return identity(datatype, shape, takes="INPUT0", gives="OUTPUT0")


def sum_of_three() -> onnx.ModelProto:
    """Return OUTPUT0 = INPUT0 + INPUT1 + INPUT2, float32 N×1."""
    names = ("INPUT0", "INPUT1", "INPUT2")
    return graph(
        [helper.make_node("Sum", names, ["OUTPUT0"])],
        dict.fromkeys(names, ("FP32", ("batch", 1))),
        {"OUTPUT0": ("FP32", ("batch", 1))},
    )


def scaled(factor: float) -> onnx.ModelProto:
    """Return OUTPUT0 = INPUT0 × factor, float32 N×4: versions that can be told apart."""
    return graph(
        [helper.make_node("Mul", ["INPUT0", "factor"], ["OUTPUT0"])],
        {"INPUT0": ("FP32", ("batch", 4))},
        {"OUTPUT0": ("FP32", ("batch", 4))},
        factor=np.array(factor, np.float32),
    )


def nan_inf() -> onnx.ModelProto:
    """Return a graph that answers NaN, both infinities, 1, 2 and 3 to anything, float32 N×1 → N×6."""
    return graph(
        [
            helper.make_node("Sub", ["INPUT0", "INPUT0"], ["zero"]),
            helper.make_node("Add", ["zero", "numbers"], ["OUTPUT0"]),
        ],
        {"INPUT0": ("FP32", ("batch", 1))},
        {"OUTPUT0": ("FP32", ("batch", 6))},
        numbers=np.array([np.nan, np.inf, -np.inf, 1, 2, 3], np.float32),
    )


def write_zoo(repository: Path) -> Path:
    """Fill `repository` with the models that most of Triton's tests need, and return it."""
    for name in IDENTITY_TYPES:
        write_graph(repository, f"identity_{name.lower()}", _identity(name, ("batch", "size")))
    write_graph(repository, "simple", sum_and_difference())
    write_graph(repository, "simple_nobatch", sum_and_difference((16,)))
    write_graph(repository, "input_all_required", sum_of_three())
    write_graph(repository, "nan_inf_output", nan_inf())
    write_graph(repository, "fixed_8", _identity("FP32", ("batch", 8)))
    write_model(repository, "tiny")
    return repository


def write_slow(repository: Path, *, cost: int) -> Path:
    """Fill `repository` with a model "slow", one sample of which keeps the engine busy, and a quick one."""
    model = tiny_model(cost=cost)
    manifest = tiny_manifest("slow", model.SerializeToString())
    write_model(repository, "slow", model=model, manifest=manifest)
    write_graph(repository, "simple", sum_and_difference())
    return repository

"""Small graphs in the manner of Triton's own test models, written without a manifest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.foreign import model_of
from support.tiny import tiny_manifest, tiny_model, write_model

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
"""The onnx package's classification networks: real graphs, whose weights are made when they run."""

LIGHT_NAMES = tuple(sorted(path.stem.removeprefix("light_") for path in LIGHT.glob("light_*.onnx")))

IDENTITY_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

Shape = Sequence[int | str]


def write_bare(repository: Path, name: str, model: onnx.ModelProto, *, version: int = 1) -> Path:
    """Write a model without a manifest, and return its version folder."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def identity(dtype: int, shape: Shape) -> onnx.ModelProto:
    """Return INPUT0 → OUTPUT0, unchanged."""
    return model_of(
        helper.make_graph(
            [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
            "identity",
            [helper.make_tensor_value_info("INPUT0", dtype, shape)],
            [helper.make_tensor_value_info("OUTPUT0", dtype, shape)],
        )
    )


def add_sub(shape: Shape = ("batch", 16), dtype: int = TensorProto.INT32) -> onnx.ModelProto:
    """Return OUTPUT0 = INPUT0 + INPUT1 and OUTPUT1 = INPUT0 - INPUT1: Triton's model "simple"."""
    return model_of(
        helper.make_graph(
            [
                helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
                helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
            ],
            "add_sub",
            [helper.make_tensor_value_info(name, dtype, shape) for name in ("INPUT0", "INPUT1")],
            [helper.make_tensor_value_info(name, dtype, shape) for name in ("OUTPUT0", "OUTPUT1")],
        )
    )


def sum_of_three() -> onnx.ModelProto:
    """Return OUTPUT0 = INPUT0 + INPUT1 + INPUT2, float32 N×1."""
    names = ("INPUT0", "INPUT1", "INPUT2")
    return model_of(
        helper.make_graph(
            [helper.make_node("Sum", names, ["OUTPUT0"])],
            "sum_of_three",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in names],
            [helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, ["batch", 1])],
        )
    )


def scaled(factor: float) -> onnx.ModelProto:
    """Return OUTPUT0 = INPUT0 × factor, float32 N×4: versions that can be told apart."""
    return model_of(
        helper.make_graph(
            [helper.make_node("Mul", ["INPUT0", "factor"], ["OUTPUT0"])],
            "scaled",
            [helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, ["batch", 4])],
            [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
        )
    )


def nan_inf() -> onnx.ModelProto:
    """Return a graph that answers NaN, both infinities, 1, 2 and 3 to anything, float32 N×1 → N×6."""
    numbers = np.array([np.nan, np.inf, -np.inf, 1, 2, 3], np.float32)
    return model_of(
        helper.make_graph(
            [
                helper.make_node("Sub", ["INPUT0", "INPUT0"], ["zero"]),
                helper.make_node("Add", ["zero", "numbers"], ["OUTPUT0"]),
            ],
            "nan_inf",
            [helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, ["batch", 6])],
            [numpy_helper.from_array(numbers, "numbers")],
        )
    )


def write_zoo(repository: Path) -> Path:
    """Fill `repository` with the models that most of Triton's tests need, and return it."""
    for name, dtype in IDENTITY_TYPES.items():
        write_bare(repository, f"identity_{name.lower()}", identity(dtype, ["batch", "size"]))
    write_bare(repository, "simple", add_sub())
    write_bare(repository, "simple_nobatch", add_sub([16]))
    write_bare(repository, "input_all_required", sum_of_three())
    write_bare(repository, "nan_inf_output", nan_inf())
    write_bare(repository, "fixed_8", identity(TensorProto.FLOAT, ["batch", 8]))
    write_model(repository, "tiny")
    return repository


def write_slow(repository: Path, *, cost: int) -> Path:
    """Fill `repository` with a model "slow", one sample of which keeps the engine busy, and a quick one."""
    model = tiny_model(cost=cost)
    manifest = tiny_manifest("slow", model.SerializeToString())
    write_model(repository, "slow", model=model, manifest=manifest)
    write_bare(repository, "simple", add_sub())
    return repository

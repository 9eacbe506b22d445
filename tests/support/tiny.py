"""A real ONNX classifier that is built in a millisecond and whose right answer is known by looking.

Input uint8 N×4×4×3; the logits are the mean red, green and blue of the image, divided by ten: the
brightest channel is the answer, and the logits tell which image it was.
"""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from google.protobuf import json_format
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vistazo_proto import manifest_pb2

SIDE = 4
LABELS = ("red", "green", "blue")


def tiny_model(*, classes: int = 3, cost: int = 0, divisor: float = 10) -> onnx.ModelProto:
    """Return the graph; `cost` adds that many useless 256×256 matrix products to each sample's run.

    `divisor` is what the means are divided by: models with another give the same answer with another
    probability.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "ten"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "select"], ["logits" if cost == 0 else "answer"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "axes"),
        numpy_helper.from_array(np.array(divisor, dtype=np.float32), "ten"),
        numpy_helper.from_array(np.eye(3, classes, dtype=np.float32), "select"),
    ]
    if cost:
        nodes += _burn(cost)
        constants += [
            numpy_helper.from_array(np.ones((3, 1 << 16), dtype=np.float32), "widen"),
            numpy_helper.from_array(np.array([-1, 256, 256], dtype=np.int64), "square"),
            numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "last_axes"),
            numpy_helper.from_array(np.array(0, dtype=np.float32), "zero"),
            numpy_helper.from_array(np.array([-1, 1], dtype=np.int64), "column"),
        ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _burn(cost: int) -> list[onnx.NodeProto]:
    nodes = [
        helper.make_node("MatMul", ["scaled", "widen"], ["wide"]),
        helper.make_node("Reshape", ["wide", "square"], ["m0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(cost)]
    return [
        *nodes,
        helper.make_node("Tanh", [f"m{cost}"], ["bounded"]),
        helper.make_node("ReduceMean", ["bounded", "last_axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Reshape", ["nothing", "column"], ["nothings"]),
        helper.make_node("Add", ["answer", "nothings"], ["logits"]),
    ]


def tiny_manifest(name: str, model: bytes, *, labels: tuple[str, ...] = LABELS) -> manifest_pb2.ModelManifest:
    """Return a manifest that describes `model`, the bytes of a tiny model."""
    return manifest_pb2.ModelManifest(
        format=1,
        name=name,
        architecture="tiny",
        input=manifest_pb2.Input(
            tensor="images", height=SIDE, width=SIDE, channels=3, layout="NHWC", dtype="UINT8"
        ),
        preprocessing=manifest_pb2.Preprocessing(
            resize_mode=manifest_pb2.Preprocessing.SHORTEST_EDGE,
            resize_size=SIDE,
            crop_height=SIDE,
            crop_width=SIDE,
            interpolation="bilinear",
            mean=[0, 0, 0],
            std=[1, 1, 1],
        ),
        output=manifest_pb2.Output(tensor="logits", kind=manifest_pb2.Output.LOGITS, classes=len(labels)),
        labels=labels,
        weights=manifest_pb2.Weights(source=manifest_pb2.Weights.CHECKPOINT, name="tiny"),
        precision="fp32",
        opset=18,
        max_batch_size=16,
        model_sha256=hashlib.sha256(model).hexdigest(),
        model_bytes=len(model),
    )


def write_model(
    repository: Path,
    name: str = "tiny",
    *,
    version: int = 1,
    model: onnx.ModelProto | None = None,
    manifest: manifest_pb2.ModelManifest | None = None,
) -> Path:
    """Write a tiny model into `repository` as export does, by one rename, and return its version folder."""
    folder = repository / name / str(version)
    staging = repository / f".staging-{name}-{version}"
    staging.mkdir(parents=True)
    write_files(staging, name, model=model, manifest=manifest)
    folder.parent.mkdir(exist_ok=True)
    return staging.rename(folder)


def write_files(
    folder: Path,
    name: str = "tiny",
    *,
    model: onnx.ModelProto | None = None,
    manifest: manifest_pb2.ModelManifest | None = None,
) -> None:
    """Write the files of a version, or overwrite them, one after the other."""
    encoded = (model or tiny_model()).SerializeToString()
    (folder / "model.onnx").write_bytes(encoded)
    (folder / "manifest.json").write_text(
        json_format.MessageToJson(manifest or tiny_manifest(name, encoded), preserving_proto_field_name=True)
    )


def plain(red: int, green: int, blue: int, *, height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    """Return an image of one colour, uint8 H×W×3."""
    return np.full((height, width, 3), (red, green, blue), dtype=np.uint8)

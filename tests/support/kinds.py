"""One tiny real model of every kind of input and every way to prepare images for it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper

from support.tiny import tiny_manifest
from vistazo_proto import manifest_pb2

_P = manifest_pb2.Preprocessing
_ELEMENTS = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16}
_FLOATS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}

KINDS: dict[str, dict[str, Any]] = {
    "imagenet": {"resize_mode": _P.SHORTEST_EDGE, "resize_size": 40},
    "bicubic": {"resize_mode": _P.SHORTEST_EDGE, "resize_size": 33, "interpolation": "bicubic"},
    "stretch": {"resize_mode": _P.STRETCH},
    "stretch-then-crop": {"resize_mode": _P.STRETCH, "resize_height": 51, "resize_width": 40},
    "cover-rounding-down": {
        "resize_mode": _P.COVER,
        "resize_height": 37,
        "resize_width": 43,
        "crop_rounding": _P.DOWN,
        "interpolation": "lanczos",
    },
    "fit-and-pad": {
        "resize_mode": _P.FIT,
        "resize_height": 30,
        "resize_width": 28,
        "pad_color": [9, 99, 199],
        "background": [1, 2, 3],
    },
    "no-resize": {"resize_mode": _P.NO_RESIZE},
    "grey": {"channels": 1, "resize_mode": _P.STRETCH, "background": [7], "interpolation": "box"},
    "floats-nchw-bgr": {
        "layout": "NCHW",
        "dtype": "FP32",
        "channel_order": "BGR",
        "resize_mode": _P.SHORTEST_EDGE,
        "resize_size": 40,
        **_FLOATS,
    },
    "half-caffe": {
        "dtype": "FP16",
        "channel_order": "BGR",
        "value_range": 255,
        "resize_mode": _P.STRETCH,
        "interpolation": "nearest",
        "mean": [104, 117, 123],
        "std": [1, 1, 1],
    },
    "bytes-bgr": {"channel_order": "BGR", "resize_mode": _P.SHORTEST_EDGE, "resize_size": 36},
}
"""Name → what its manifest says of input and preprocessing."""

HEIGHT, WIDTH = 32, 28
CLASSES = 5


def write_kinds(repository: Path) -> None:
    """Write a model of each kind: logits that every pixel of the input has a part in."""
    for name, told in KINDS.items():
        write_kind(repository, name, told)


def write_kind(repository: Path, name: str, told: dict[str, Any], *, version: int = 1) -> None:
    """Write one model into the repository, by one rename."""
    told = {"channels": 3, "layout": "NHWC", "dtype": "UINT8", "interpolation": "bilinear"} | told
    channels, layout, dtype = told.pop("channels"), told.pop("layout"), told.pop("dtype")
    model = _graph(channels, layout, dtype).SerializeToString()
    manifest = tiny_manifest(name, model, labels=tuple(f"class {number}" for number in range(CLASSES)))
    manifest.input.CopyFrom(
        manifest_pb2.Input(
            tensor="images", height=HEIGHT, width=WIDTH, channels=channels, layout=layout, dtype=dtype
        )
    )
    manifest.preprocessing.CopyFrom(_P(crop_height=HEIGHT, crop_width=WIDTH, **told))
    manifest.weights.source = manifest_pb2.Weights.IMPORTED
    staging = repository / f".staging-{name}-{version}"
    staging.mkdir(parents=True)
    (staging / "model.onnx").write_bytes(model)
    text = json_format.MessageToJson(manifest, preserving_proto_field_name=True)
    (staging / "manifest.json").write_text(text)
    (repository / name).mkdir(exist_ok=True)
    staging.rename(repository / name / str(version))


def _graph(channels: int, layout: str, dtype: str) -> onnx.ModelProto:
    shape = [HEIGHT, WIDTH, channels] if layout == "NHWC" else [channels, HEIGHT, WIDTH]
    values = channels * HEIGHT * WIDTH
    weights = np.random.default_rng(0).normal(size=(values, CLASSES)).astype(np.float32) / values
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
                helper.make_node("Flatten", ["float"], ["flat"]),
                helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            ],
            "kind",
            [helper.make_tensor_value_info("images", _ELEMENTS[dtype], ["batch", *shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            [numpy_helper.from_array(weights, "weights")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )

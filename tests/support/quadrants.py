"""A real ONNX classifier that tells which quarter of an image is the brightest: it sees what is up.

Input uint8 N×4×4×3; the logits are the mean of each quarter, divided by ten.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from support.tiny import SIDE

LABELS = ("top left", "top right", "bottom left", "bottom right")


def quadrant_model() -> onnx.ModelProto:
    """Return the graph."""
    half = SIDE // 2
    weights = np.zeros((SIDE, SIDE, 3, 4), dtype=np.float32)
    for quadrant in range(4):
        top, left = divmod(quadrant, 2)
        weights[top * half : (top + 1) * half, left * half : (left + 1) * half, :, quadrant] = 1 / (
            half * half * 3 * 10
        )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "quadrants",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights.reshape(-1, 4), "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def corner(*, height: int, width: int) -> NDArray[np.uint8]:
    """Return a dark image whose top left quarter is bright, uint8 H×W×3."""
    pixels = np.full((height, width, 3), 20, dtype=np.uint8)
    pixels[: height // 2, : width // 2] = 200
    return pixels

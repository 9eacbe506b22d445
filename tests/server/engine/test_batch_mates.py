"""A graph whose answers depend on who else is in the batch is found by trial, and one whose do not is not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from support.graphs import graph, identity, write_graph
from vistazo_server.engine.graph import read_signature, zeros
from vistazo_server.engine.probe import feels_batch_mates
from vistazo_server.engine.session import create_session

IO = {"inputs": {"x": ("FP32", ("batch", 4))}, "outputs": {"y": ("FP32", ("batch", 4))}}


def quantised() -> onnx.ModelProto:
    """Return a graph that scales by the largest value of the batch, and rounds."""
    return graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        **IO,
    )


def centred() -> onnx.ModelProto:
    """Return a graph that takes the mean of the batch from each sample."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "batch_axis"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return graph(nodes, **IO, batch_axis=np.array([0]))


def ranked() -> onnx.ModelProto:
    """Return a graph whose softmax is over the batch."""
    return graph([helper.make_node("Softmax", ["x"], ["y"], axis=0)], **IO)


def normalised() -> onnx.ModelProto:
    """Return a graph that normalises each feature by the statistics of the batch."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["features"], perm=[1, 0]),
        helper.make_node("LayerNormalization", ["features", "one"], ["normal"], axis=-1),
        helper.make_node("Transpose", ["normal"], ["y"], perm=[1, 0]),
    ]
    return graph(nodes, **IO, one=np.ones(1, np.float32))


def linear() -> onnx.ModelProto:
    """Return a graph of one product with weights."""
    weights = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)
    return graph([helper.make_node("MatMul", ["x", "w"], ["y"])], **IO, w=weights)


def feels(model: onnx.ModelProto, folder: Path) -> bool:
    """Return what the trial says of a graph."""
    path = write_graph(folder, "bare", model) / "model.onnx"
    session = create_session(path, device="cpu", threads=1)
    signature = read_signature(session, path, image_input=None)
    return feels_batch_mates(session, signature, zeros(signature)[0])


@pytest.mark.parametrize("make", [quantised, centred, ranked, normalised])
def test_a_graph_that_looks_at_the_whole_batch_is_found(tmp_path: Path, make):
    assert feels(make(), tmp_path)


@pytest.mark.parametrize("make", [linear, identity, lambda: identity("FP16"), lambda: identity("INT64")])
def test_a_graph_that_looks_at_each_sample_alone_is_not_accused(tmp_path: Path, make):
    assert not feels(make(), tmp_path)

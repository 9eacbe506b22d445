"""Small graphs by which batch-mates influence each other, and such that only look so: from "x" to "y"."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from support.foreign import model_of
from support.graphs import Dims, graph

IO = {"inputs": {"x": ("FP32", ("batch", 4))}, "outputs": {"y": ("FP32", ("batch", 4))}}

WEIGHTS = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)

node = helper.make_node


def of(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """Return a graph from float32 N×4 to as much."""
    return graph(nodes, **IO, **constants)


def quantised() -> onnx.ModelProto:
    """Return a graph that scales by the largest value of the batch, and rounds."""
    return of(
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    )


def quantised_probabilities() -> onnx.ModelProto:
    """Return a graph that quantises what is between 0 and 1 in any batch: a trial sees little of it."""
    return of(
        node("Softmax", ["x"], ["p"]),
        node("DynamicQuantizeLinear", ["p"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "w", "zero"], ["whole"]),
        node("Cast", ["whole"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "scale"], ["y"]),
        w=(WEIGHTS * 40).astype(np.int8),
    )


def centred(*, axes: list[int] | None) -> onnx.ModelProto:
    """Return a graph that takes the mean over `axes`, None for all, from each value."""
    given = {} if axes is None else {"axes": np.array(axes)}
    return of(node("ReduceMean", ["x", *given], ["mean"]), node("Sub", ["x", "mean"], ["y"]), **given)


def ranked(axis: int) -> onnx.ModelProto:
    """Return a graph of a softmax over `axis`."""
    return of(node("Softmax", ["x"], ["y"], axis=axis))


def normalised() -> onnx.ModelProto:
    """Return a graph that normalises each feature by the statistics of the batch."""
    return of(
        node("Transpose", ["x"], ["features"], perm=[1, 0]),
        node("LayerNormalization", ["features", "one"], ["normal"], axis=-1),
        node("Transpose", ["normal"], ["y"], perm=[1, 0]),
        one=np.ones(1, np.float32),
    )


def summed_up(*, reverse: int) -> onnx.ModelProto:
    """Return a graph whose samples are summed over those before, or after, them."""
    return of(node("CumSum", ["x", "axis"], ["y"], reverse=reverse), axis=np.array(0))


def from_the_first() -> onnx.ModelProto:
    """Return a graph that takes the first sample from each."""
    return of(
        node("Gather", ["x", "first"], ["row"], axis=0), node("Sub", ["x", "row"], ["y"]), first=np.array([0])
    )


def from_the_last() -> onnx.ModelProto:
    """Return a graph that takes the last sample from each, by a slice."""
    return of(
        node("Slice", ["x", "start", "end", "axis"], ["row"]),
        node("Sub", ["x", "row"], ["y"]),
        start=np.array([-1]),
        end=np.array([2**62]),
        axis=np.array([0]),
    )


def turned() -> onnx.ModelProto:
    """Return a graph whose reshapes put other samples' numbers into each row."""
    return of(
        node("Reshape", ["x", "columns"], ["c"]),
        node("Softmax", ["c"], ["s"], axis=-1),
        node("Transpose", ["s"], ["t"], perm=[1, 0]),
        node("Reshape", ["t", "rows"], ["y"]),
        columns=np.array([4, -1]),
        rows=np.array([-1, 4]),
    )


def attending() -> onnx.ModelProto:
    """Return a graph in which each sample attends to all of the batch."""
    return of(
        node("Transpose", ["x"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["all"]),
        node("Softmax", ["all"], ["s"]),
        node("MatMul", ["s", "x"], ["y"]),
    )


def trained() -> onnx.ModelProto:
    """Return a graph whose batch normalisation is in training mode."""
    one, nothing = np.ones(4, np.float32), np.zeros(4, np.float32)
    return of(
        node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y", "m", "v"], training_mode=1),
        scale=one,
        bias=nothing,
        mean=nothing,
        var=one,
    )


def in_a_branch() -> onnx.ModelProto:
    """Return a graph that quantises dynamically in both branches of an If."""

    def branch(name: str) -> onnx.GraphProto:
        nodes = [
            node("DynamicQuantizeLinear", ["x"], [f"{name}q", f"{name}s", f"{name}z"]),
            node("DequantizeLinear", [f"{name}q", f"{name}s", f"{name}z"], [name]),
        ]
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
        return helper.make_graph(nodes, name, [], [output])

    return of(
        node("If", ["yes"], ["y"], then_branch=branch("a"), else_branch=branch("b")), yes=np.array(True)
    )


def in_a_function() -> onnx.ModelProto:
    """Return a graph that calls a function, which takes the mean of the batch."""
    domain, opset = "of.mine", [helper.make_opsetid("", 18)]
    body = [
        node("Constant", [], ["axes"], value_ints=[0]),
        node("ReduceMean", ["a", "axes"], ["mean"]),
        node("Sub", ["a", "mean"], ["b"]),
    ]
    model = of(node("Centre", ["x"], ["y"], domain=domain))
    model.functions.append(helper.make_function(domain, "Centre", ["a"], ["b"], body, opset))
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def in_a_loop() -> onnx.ModelProto:
    """Return a graph that quantises dynamically, twice, in the body of a Loop."""
    nodes = [
        node("DynamicQuantizeLinear", ["c"], ["q", "s", "z"]),
        node("DequantizeLinear", ["q", "s", "z"], ["next"]),
        node("Identity", ["go"], ["on"]),
    ]
    number, yes, rows, on, after = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("number", TensorProto.INT64, []),
            ("go", TensorProto.BOOL, []),
            ("c", TensorProto.FLOAT, None),
            ("on", TensorProto.BOOL, []),
            ("next", TensorProto.FLOAT, None),
        )
    )
    body = helper.make_graph(nodes, "body", [number, yes, rows], [on, after])
    return of(node("Loop", ["times", "", "x"], ["y"], body=body), times=np.array(2))


def in_pairs() -> onnx.ModelProto:
    """Return a graph that takes the mean of two samples from each: only of those side by side."""
    return of(
        node("Reshape", ["x", "pairs"], ["p"]),
        node("ReduceMean", ["p", "axes"], ["mean"]),
        node("Sub", ["p", "mean"], ["d"]),
        node("Reshape", ["d", "rows"], ["y"]),
        pairs=np.array([-1, 8]),
        axes=np.array([1]),
        rows=np.array([-1, 4]),
    )


def pairwise() -> onnx.ModelProto:
    """Return a graph that compares each sample with each."""
    return of(
        node("Unsqueeze", ["x", "one"], ["a"]),
        node("Unsqueeze", ["x", "zero"], ["b"]),
        node("Sub", ["a", "b"], ["apart"]),
        node("ReduceSum", ["apart", "one"], ["y"], keepdims=0),
        one=np.array([1]),
        zero=np.array([0]),
    )


def shared_out() -> onnx.ModelProto:
    """Return a graph that divides by the number of samples."""
    return of(
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["size"], axis=0),
        node("Cast", ["size"], ["float"], to=TensorProto.FLOAT),
        node("Div", ["x", "float"], ["y"]),
        first=np.array(0),
    )


def poisoned() -> onnx.ModelProto:
    """Return a graph by which only what is no number reaches the others: 0 times the largest of the batch."""
    return of(
        node("Reshape", ["x", "flat"], ["f"]),
        node("TopK", ["f", "k"], ["most", "place"], axis=-1),
        node("Reshape", ["most", "one"], ["m"]),
        node("Mul", ["m", "nothing"], ["zero"]),
        node("Add", ["x", "zero"], ["y"]),
        flat=np.array([1, -1]),
        k=np.array([1]),
        one=np.array([1]),
        nothing=np.zeros(1, np.float32),
    )


def of_whole_numbers(datatype: str = "INT64") -> onnx.ModelProto:
    """Return a graph of whole numbers that takes the largest of the batch from each."""
    io: dict[str, tuple[str, Dims]] = {"x": (datatype, ("batch", 4))}
    nodes = [
        node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        node("Reshape", ["float", "flat"], ["f"]),
        node("ReduceMax", ["f", "last"], ["most"], keepdims=0),
        node("Sub", ["float", "most"], ["y"]),
    ]
    return graph(nodes, io, {"y": ("FP32", ("batch", 4))}, flat=np.array([1, -1]), last=np.array([1]))


def with_a_mask() -> onnx.ModelProto:
    """Return a graph of two inputs, whose mean is over the batch of the second one."""
    nodes = [node("ReduceMean", ["mask", "axes"], ["mean"]), node("Mul", ["x", "mean"], ["y"])]
    inputs: dict[str, tuple[str, Dims]] = {"x": ("FP32", ("batch", 4)), "mask": ("FP32", ("batch", 4))}
    return graph(nodes, inputs, IO["outputs"], axes=np.array([0]))


MIXING: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "dynamic quantisation": (quantised, "DynamicQuantizeLinear scales a batch as one"),
    "of probabilities": (quantised_probabilities, "DynamicQuantizeLinear scales a batch as one"),
    "mean of the batch": (lambda: centred(axes=[0]), "ReduceMean over axis 0 is over the batch"),
    "counted from the end": (lambda: centred(axes=[-2]), "ReduceMean over axis -2 is over the batch"),
    "mean of all": (lambda: centred(axes=None), "ReduceMean over all axes is over the batch"),
    "softmax of the batch": (lambda: ranked(0), "Softmax over axis 0 is over the batch"),
    "transposed": (normalised, "LayerNormalization from axis -1 on is over the batch"),
    "sum of those before": (lambda: summed_up(reverse=0), "CumSum over axis 0 is over the batch"),
    "sum of those after": (lambda: summed_up(reverse=1), "CumSum over axis 0 is over the batch"),
    "first row": (from_the_first, "Gather takes fixed places of the batch"),
    "last row": (from_the_last, "Slice takes fixed places of the batch"),
    "reshaped": (turned, ""),
    "attention over the batch": (attending, "MatMul meets each sample with the others of the batch"),
    "in a branch": (in_a_branch, "DynamicQuantizeLinear scales a batch as one"),
    "in a function": (in_a_function, "ReduceMean over axis 0 is over the batch"),
    "in a loop": (in_a_loop, "DynamicQuantizeLinear scales a batch as one"),
    "pairwise": (pairwise, "Sub meets each sample with the others of the batch"),
    "shared out": (shared_out, ""),
    "not a number": (poisoned, ""),
    "whole numbers": (of_whole_numbers, ""),
    "bytes": (lambda: of_whole_numbers("UINT8"), ""),
    "of a second input": (with_a_mask, "ReduceMean over axis 0 is over the batch"),
}
"""By what they do: the graph, and what its operators say; empty where only a trial shows it."""


def normalised_for_inference() -> onnx.ModelProto:
    """Return a graph whose batch normalisation uses the statistics of its training."""
    one = np.full(4, 0.5, np.float32)
    return of(
        node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y"]),
        scale=one,
        bias=one,
        mean=one,
        var=one,
    )


def reshaped(first: int) -> onnx.ModelProto:
    """Return a graph whose reshapes keep the batch, said as 0 or as -1."""
    return of(
        node("Reshape", ["x", "square"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("Reshape", ["p", "row"], ["y"]),
        square=np.array([first, 2, 2]),
        row=np.array([first, 4]),
    )


def there_and_back() -> onnx.ModelProto:
    """Return a graph that puts the batch last, and takes a mean over what is first then."""
    return of(
        node("Transpose", ["x"], ["t"], perm=[1, 0]),
        node("ReduceMean", ["t", "axes"], ["mean"]),
        node("Sub", ["t", "mean"], ["d"]),
        node("Transpose", ["d"], ["y"], perm=[1, 0]),
        axes=np.array([0]),
    )


def of_weights() -> onnx.ModelProto:
    """Return a graph that normalises, takes rows of and averages its own weights, over axis 0."""
    return of(
        node("Softmax", ["w"], ["s"], axis=0),
        node("ReduceMean", ["w", "axes"], ["mean"]),
        node("Gather", ["w", "axes"], ["row"], axis=0),
        node("MatMul", ["x", "s"], ["product"]),
        node("Add", ["product", "mean"], ["sum"]),
        node("Add", ["sum", "row"], ["y"]),
        w=WEIGHTS,
        axes=np.array([0]),
    )


def of_its_shape() -> onnx.ModelProto:
    """Return a graph that reads the size of its batch to reshape by it, as PyTorch's exporter writes it."""
    return of(
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["size"], axis=0),
        node("Unsqueeze", ["size", "first"], ["one"]),
        node("Concat", ["one", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["s"]),
        node("ReduceMax", ["s", "last"], ["most"], keepdims=1),
        node("Sub", ["s", "most"], ["d"]),
        node("Reshape", ["d", "row"], ["y"]),
        first=np.array(0),
        rest=np.array([2, 2]),
        last=np.array([2]),
        row=np.array([-1, 4]),
    )


def quantised_once() -> onnx.ModelProto:
    """Return a graph that is quantised by scales that never change."""
    return of(
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("MatMulInteger", ["q", "w", "zero"], ["whole"]),
        node("Cast", ["whole"], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "scale"], ["y"]),
        scale=np.array(0.02, np.float32),
        zero=np.array(128, np.uint8),
        w=(WEIGHTS * 40).astype(np.int8),
    )


def beside_nothing() -> onnx.ModelProto:
    """Return a graph with an operator over the batch that no output is made of."""
    return of(
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("MatMul", ["x", "w"], ["y"]), w=WEIGHTS
    )


def embedding() -> onnx.ModelProto:
    """Return a graph that looks up rows of a table by number, and runs with few numbers only."""
    nodes = [
        node("Gather", ["table", "x"], ["rows"], axis=0),
        node("ReduceMean", ["rows", "axes"], ["y"], keepdims=0),
    ]
    inputs: dict[str, tuple[str, Dims]] = {"x": ("INT64", ("batch", 3))}
    return graph(nodes, inputs, IO["outputs"], table=WEIGHTS[:2], axes=np.array([1]))


def old_softmax() -> onnx.ModelProto:
    """Return a graph of opset 11, whose softmax flattens what comes before its axis."""
    inner = helper.make_graph(
        [node("Softmax", ["x"], ["y"])],
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    model = model_of(inner)
    model.opset_import[0].version = 11
    return model


def one_behind_the_other() -> onnx.ModelProto:
    """Return a graph that joins two of its own batches to run them as one, and parts them again."""
    return of(
        node("Concat", ["x", "x"], ["twice"], axis=0),
        node("MatMul", ["twice", "w"], ["h"]),
        node("Split", ["h"], ["a", "b"], axis=0, num_outputs=2),
        node("Add", ["a", "b"], ["y"]),
        w=WEIGHTS,
    )


def heads() -> onnx.ModelProto:
    """Return a graph in which the parts of a sample attend to one another."""
    return of(
        node("Reshape", ["x", "parts"], ["t"]),
        node("Transpose", ["t"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["t", "k"], ["all"]),
        node("Softmax", ["all"], ["p"]),
        node("MatMul", ["p", "t"], ["o"]),
        node("Flatten", ["o"], ["y"]),
        parts=np.array([0, 2, 2]),
    )


HARMLESS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mean of the rest": lambda: centred(axes=[1]),
    "counted from the end": lambda: centred(axes=[-1]),
    "softmax of a row": lambda: ranked(-1),
    "softmax of an old opset": old_softmax,
    "inference mode": normalised_for_inference,
    "reshape with 0": lambda: reshaped(0),
    "reshape with -1": lambda: reshaped(-1),
    "transposed twice": there_and_back,
    "over axis 0 of weights": of_weights,
    "by its shape": of_its_shape,
    "static quantisation": quantised_once,
    "read by nobody": beside_nothing,
    "embedding": embedding,
    "joined and parted": one_behind_the_other,
    "attention in a sample": heads,
}
"""By what they look like."""

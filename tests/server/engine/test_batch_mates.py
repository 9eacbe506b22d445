"""A graph whose answers depend on who else is in the batch is found, by its operators and by trial."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from support.foreign import model_of
from support.graphs import graph, identity, write_graph
from support.mixing import HARMLESS, MIXING, node, of, ranked, trained
from vistazo_onnx.batch_mates import mixing_operator
from vistazo_onnx.trial import influence
from vistazo_server.engine import probe
from vistazo_server.engine.graph import read_signature
from vistazo_server.engine.session import create_session


def written(model: onnx.ModelProto, folder: Path) -> Path:
    """Return the file of a graph."""
    return write_graph(folder, "bare", model) / "model.onnx"


def tried(model: onnx.ModelProto, folder: Path, *, largest: int = 32) -> str:
    """Return what the trial alone says of a graph."""
    path = written(model, folder)
    session = create_session(path, device="cpu", threads=1)
    signature, sample, _ = probe.settle(session, read_signature(session, path, image_input=None), path)
    assert signature.is_batched
    # A file that is not there has no operators.
    return probe.batch_mates(session, signature, sample, folder / "nothing", largest=largest)


@pytest.mark.parametrize("kind", MIXING)
def test_a_trial_finds_every_graph_that_looks_at_the_whole_batch(tmp_path: Path, kind: str):
    assert "a sample's answer depends on" in tried(MIXING[kind][0](), tmp_path)


@pytest.mark.parametrize("kind", MIXING)
def test_the_operator_is_named_where_the_graph_tells_it(tmp_path: Path, kind: str):
    make, reason = MIXING[kind]

    assert mixing_operator(written(make(), tmp_path)) == reason


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_graph_that_looks_at_each_sample_alone_is_not_accused(tmp_path: Path, kind: str):
    model = HARMLESS[kind]()

    assert tried(model, tmp_path / "tried") == ""
    assert mixing_operator(written(model, tmp_path)) == ""


@pytest.mark.parametrize("datatype", ["FP16", "FP64", "INT64", "UINT8", "INT8", "BOOL", "BYTES"])
def test_any_datatype_is_tried(tmp_path: Path, datatype: str):
    assert tried(identity(datatype), tmp_path) == ""


def test_training_mode_is_found(tmp_path: Path):
    assert "takes the statistics of the batch" in mixing_operator(written(trained(), tmp_path / "named"))
    assert tried(trained(), tmp_path) != ""


def old(nodes: Sequence[onnx.NodeProto], opset: int) -> onnx.ModelProto:
    """Return a graph of an older operator set, from float32 N×2×2 to as much."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 2]) for name in "xy")
    model = model_of(helper.make_graph(list(nodes), "old", [x], [y]))
    model.opset_import[0].version = opset
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        # Until opset 13 a softmax was over its axis and all that follow.
        (old([node("Softmax", ["x"], ["y"], axis=0)], 11), "Softmax from axis 0 on is over the batch"),
        (old([node("Softmax", ["x"], ["y"], axis=2)], 11), ""),
        (
            old([node("MeanVarianceNormalization", ["x"], ["y"])], 13),
            "MeanVarianceNormalization over axis 0 is over the batch",
        ),
        (old([node("MeanVarianceNormalization", ["x"], ["y"], axes=[1, 2])], 13), ""),
        (
            old([node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1), node("Sub", ["x", "m"], ["y"])], 13),
            "",
        ),
        (
            old([node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])], 13),
            "ReduceMean over axis 0 is over the batch",
        ),
        (
            old(
                [
                    node("ArgMax", ["x"], ["a"]),
                    node("Cast", ["a"], ["f"], to=1),
                    node("Add", ["x", "f"], ["y"]),
                ],
                13,
            ),
            "ArgMax over axis 0 is over the batch",
        ),
        (
            old([node("Transpose", ["x"], ["t"]), node("Hardmax", ["t"], ["y"])], 13),
            "Hardmax over axis -1 is over the batch",
        ),
        (
            old([node("RandomNormalLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], 13),
            "RandomNormalLike draws from one sequence for the whole batch",
        ),
        (
            old([node("Unique", ["x"], ["u"]), node("Sub", ["x", "u"], ["y"])], 13),
            "Unique compares all samples of a batch",
        ),
    ],
)
def test_operators_are_read_as_their_opset_means_them(tmp_path: Path, model: onnx.ModelProto, reason: str):
    assert mixing_operator(written(model, tmp_path)) == reason


def test_a_function_that_leaves_its_axis_to_a_default_is_left_to_the_trial(tmp_path: Path):
    model = ranked(0)
    function = helper.make_function(
        "of.mine",
        "Rank",
        ["a"],
        ["b"],
        [node("Softmax", ["a"], ["b"])],
        [helper.make_opsetid("", 18)],
        ["axis"],
    )
    reference = function.node[0].attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "axis", "axis", onnx.AttributeProto.INT
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("of.mine", 1))
    del model.graph.node[:]
    model.graph.node.append(node("Rank", ["x"], ["y"], domain="of.mine"))
    assert mixing_operator(written(model, tmp_path / "default")) == ""

    model.graph.node[0].attribute.append(helper.make_attribute("axis", 0))
    assert mixing_operator(written(model, tmp_path)) == "Softmax over axis 0 is over the batch"


@pytest.mark.parametrize("content", [b"", b"none", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20])
def test_what_is_no_onnx_file_mixes_nothing(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    assert mixing_operator(path) == ""
    assert mixing_operator(tmp_path / "missing") == ""


def test_functions_that_unfold_without_end_are_given_up(tmp_path: Path):
    model = of(node("F0", ["x"], ["y"], domain="f"))
    for number in range(40):
        call = f"F{number + 1}"
        body = [node(call, ["a"], ["m"], domain="f"), node(call, ["m"], ["b"], domain="f")]
        model.functions.append(helper.make_function("f", f"F{number}", ["a"], ["b"], body, []))

    assert mixing_operator(written(model, tmp_path)) == ""


def test_a_graph_that_is_slow_is_tried_with_few_runs():
    runs = []

    def run(columns: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        runs.append(len(columns[0]))
        return columns

    assert influence(run, [np.zeros(3, np.float32)], (2, 32), seconds=0) == ""
    assert runs == [2, 1, 2, 2]


def test_a_batch_of_several_sizes_is_tried_with_the_sample_before_after_and_between():
    seen = set()

    def run(columns: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        (x,) = columns
        own = (x >= 0) & (x < 1)
        seen.update((len(x), at) for at in range(len(x)) if own[at].all() and not own.all())
        return [x]

    influence(run, [np.zeros(8, np.float32)], (2, 5), seconds=10)

    assert seen >= {(2, 0), (2, 1), (5, 0), (5, 2), (5, 4)}


def test_noise_of_a_kernel_is_no_influence():
    random = np.random.default_rng(0)

    def run(columns: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [columns[0] * (1 + random.uniform(-1e-4, 1e-4, (len(columns[0]), 1)))]

    assert influence(run, [np.zeros(4, np.float32)], (2, 8), seconds=1) == ""


def test_where_batches_fail_with_other_samples_than_those_tried_they_are_not_trusted(tmp_path: Path):
    def run(columns: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        if (columns[0] != columns[0][0]).any():
            raise RuntimeError("not together")
        return columns

    assert influence(run, [np.zeros(4, np.float32)], (2,), seconds=1) == (
        "no batch with other samples ran: not together"
    )


def test_free_sizes_that_nobody_can_guess_are_not_trusted(tmp_path: Path):
    model = graph(
        [node("Reshape", ["x", "shape"], ["y"])],
        {"x": ("FP32", ("batch", "any"))},
        {"y": ("FP32", ("batch", 13, "rest"))},
        shape=np.array([0, 13, -1]),
    )

    assert "nobody knows at which sizes it runs" in tried(model, tmp_path)

"""Graphs without a manifest: what they take, what they do with batches, and which samples run together."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from support.graphs import graph, identity, mean_of_any_size, sum_and_difference, write_graph
from support.tiny import tiny_model
from vistazo_server.engine.graph import join_rows, read_signature, split_samples
from vistazo_server.engine.onnx_file import has_half_weights
from vistazo_server.engine.onnx_model import runner_for
from vistazo_server.engine.probe import settle
from vistazo_server.engine.runner import GraphRunner, StackingRunner
from vistazo_server.engine.tensors import FREE
from vistazo_server.errors import ModelLoadError
from vistazo_server.telemetry.statistics import RunStatistics

PATH = Path("model.onnx")


def session_of(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def signature_of(model, image_input=None):
    return read_signature(session_of(model), PATH, image_input=image_input)


def shapes_of(statistics):
    return {size: one.count for size, one in statistics.sizes.items()}


@pytest.mark.parametrize(
    ("shape", "is_batched", "fixed", "dims"),
    [
        (("batch", 3), True, 0, (3,)),
        (("batch", "any"), True, 0, (FREE,)),
        ((1, 3), True, 1, (3,)),
        ((4, 3), False, 0, (4, 3)),
        ((), False, 0, ()),
    ],
)
def test_the_first_dimension_is_the_batch_where_it_is_free_or_one(shape, is_batched, fixed, dims):
    signature = signature_of(identity("FP32", shape))

    assert (signature.is_batched, signature.fixed_batch) == (is_batched, fixed)
    assert signature.inputs[0].dims == signature.outputs[0].dims == dims


def test_a_fixed_batch_is_one_where_the_manifest_says_that_it_takes_images():
    signature = signature_of(identity("FP32", (4, 3)), image_input="x")

    assert (signature.is_batched, signature.fixed_batch, signature.inputs[0].dims) == (True, 4, (3,))


def test_an_input_without_a_batch_leaves_none_to_the_others():
    model = graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        {"x": ("FP32", ("batch", 3)), "factor": ("FP32", ())},
        {"y": ("FP32", ("batch", 3))},
    )

    signature = signature_of(model)

    assert not signature.is_batched
    assert [spec.dims for spec in signature.inputs] == [(FREE, 3), ()]


def test_an_output_that_is_no_tensor_is_refused_by_name():
    sequence = helper.make_node("SequenceConstruct", ["x"], ["y"])
    info = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    model = identity()
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.append(sequence)
    model.graph.output.append(info)

    with pytest.raises(ModelLoadError, match=r"the output 'y' is a seq\(tensor\(float\)\), which cannot be"):
        signature_of(model)


def test_what_a_graph_really_does_with_batches_is_tried():
    one = np.array([1, 3])
    stubborn = graph(
        [helper.make_node("Reshape", ["x", "one"], ["r"]), helper.make_node("Identity", ["r"], ["y"])],
        {"x": ("FP32", ("batch", 3))},
        {"y": ("FP32", ("n", "m"))},
        one=one,
    )
    mixing = graph(
        [helper.make_node("ReduceMean", ["x", "first"], ["y"], keepdims=0)],
        {"x": ("FP32", ("n", 3))},
        {"y": ("FP32", ("m",))},
        first=np.array([0]),
    )
    for model, expected in ((identity(), (True, 0)), (stubborn, (True, 1)), (mixing, (False, 0))):
        session = session_of(model)
        declared = read_signature(session, PATH, image_input=None)
        settled, sample, _ = settle(session, declared, PATH)
        assert (settled.is_batched, settled.fixed_batch) == expected
        assert sample is not None


def test_a_graph_that_never_runs_is_refused():
    model = graph(
        [helper.make_node("Gather", ["x", "places"], ["y"], axis=1)],
        {"x": ("FP32", ("batch", 3))},
        {"y": ("FP32", ("batch", 1))},
        places=np.array([9]),
    )
    session = session_of(model)
    with pytest.raises(ModelLoadError, match=r"model\.onnx fails: .+"):
        settle(session, read_signature(session, PATH, image_input=None), PATH)


def test_free_sizes_that_no_guess_fits_leave_a_model_cold_and_served():
    model = graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": ("FP32", ("batch", "any"))},
        {"y": ("FP32", ("batch", 13, "rest"))},
        shape=np.array([0, 13, -1]),
    )
    session = session_of(model)
    signature = read_signature(session, PATH, image_input=None)
    settled, sample, _ = settle(session, signature, PATH)

    assert sample is None
    assert settled == signature


def test_one_input_of_a_fixed_shape_has_the_fast_runner():
    assert isinstance(runner(tiny_model()), StackingRunner)
    assert isinstance(runner(identity("FP32", (1, 3))), StackingRunner)
    assert isinstance(runner(identity("BYTES")), GraphRunner)
    assert isinstance(runner(sum_and_difference()), GraphRunner)
    assert isinstance(runner(mean_of_any_size()), GraphRunner)


def runner(model, *, max_batch_size=8):
    session = session_of(model)
    signature = read_signature(session, PATH, image_input=None)
    return runner_for(session, signature, max_batch_size=max_batch_size, device="cpu")


@pytest.mark.parametrize("kind", [StackingRunner, GraphRunner])
def test_both_runners_give_the_same_rows(kind):
    session = session_of(tiny_model())
    signature = read_signature(session, PATH, image_input=None)
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    run = kind(session, signature, **({"max_batch_size": 8} if kind is StackingRunner else {})).run
    statistics = RunStatistics()

    logits = join_rows(run(split_samples([images], signature), statistics), 0, signature)

    np.testing.assert_allclose(logits, images.mean(axis=(1, 2)) / 10, rtol=1e-5)
    assert shapes_of(statistics) == {5: 1}
    assert statistics.sizes[5].infer_seconds > 0


def test_samples_of_one_shape_run_together_and_keep_their_places():
    session = session_of(mean_of_any_size())
    signature = read_signature(session, PATH, image_input=None)
    samples = [np.full((3, size, 2), value, np.float32) for size, value in ((4, 0), (5, 1), (4, 2), (5, 3))]
    statistics = RunStatistics()

    rows = GraphRunner(session, signature).run(samples, statistics)

    assert join_rows(rows, 0, signature)[:, 0].tolist() == [0, 1, 2, 3]
    assert shapes_of(statistics) == {2: 2}


def test_a_fixed_batch_is_filled_up_and_what_fills_it_is_dropped():
    session = session_of(identity("FP32", (4, 3)))
    signature = read_signature(session, PATH, image_input="x")
    samples = [np.full(3, value, np.float32) for value in range(6)]
    statistics = RunStatistics()

    rows = GraphRunner(session, signature).run(samples, statistics)

    assert join_rows(rows, 0, signature)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert shapes_of(statistics) == {4: 1, 2: 1}


def test_rows_that_do_not_count_the_samples_are_refused():
    model = graph(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
        {"x": ("FP32", ("n", 3))},
        {"y": ("FP32", ("m", 3))},
    )
    for run in (runner(model).run, GraphRunner(session_of(model), signature_of(model)).run):
        with pytest.raises(ValueError, match=r"the output 'y' of a batch of 1 has the shape \[2, 3\]"):
            run([np.zeros(3, np.float32)])


def test_runners_of_one_session_share_no_buffer():
    session = session_of(identity())
    signature = read_signature(session, PATH, image_input=None)
    one, other = (runner_for(session, signature, max_batch_size=2, device="cpu") for _ in range(2))
    first = one._feed([np.full(3, 1, np.float32)])
    second = other._feed([np.full(3, 2, np.float32)])

    assert not np.shares_memory(first, second)
    assert (first.tolist(), second.tolist()) == ([[1, 1, 1]], [[2, 2, 2]])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (tiny_model(), False),
        (identity("FP16"), False),  # no weights at all
        (
            graph(
                [helper.make_node("Add", ["x", "weights"], ["y"])],
                {"x": ("FP16", ("n", 3))},
                {"y": ("FP16", ("n", 3))},
                weights=np.ones(3, np.float16),
            ),
            True,
        ),
        (
            graph(
                [
                    helper.make_node(
                        "Constant",
                        [],
                        ["c"],
                        value=helper.make_tensor("c", TensorProto.FLOAT16, [3], [1, 2, 3]),
                    ),
                    helper.make_node("Add", ["x", "c"], ["y"]),
                ],
                {"x": ("FP16", ("n", 3))},
                {"y": ("FP16", ("n", 3))},
            ),
            True,
        ),
    ],
)
def test_half_weights_are_found_in_the_file(tmp_path, model, expected):
    path = write_graph(tmp_path, "model", model) / "model.onnx"

    assert has_half_weights(path) is expected


@pytest.mark.parametrize("content", [b"", b"none", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20])
def test_what_is_no_onnx_file_has_no_half_weights(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    assert not has_half_weights(path)


def test_a_shape_that_the_graph_cannot_run_does_not_cost_the_other_shapes_their_rows():
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": ("FP32", ("n", "width"))},
        {"y": ("FP32", ("n", 2))},
        w=np.ones((3, 2), dtype=np.float32),
    )
    made = GraphRunner(session_of(model), signature_of(model))
    good, bad = np.ones(3, dtype=np.float32), np.ones(4, dtype=np.float32)
    rows = made.run([good, bad, good, bad])

    assert [isinstance(row, Exception) for row in rows] == [False, True, False, True]
    assert [row.outputs.arrays[0][row.at].tolist() for row in rows[::2]] == [[3.0, 3.0]] * 2
    # With nobody else in the run it fails as a whole.
    with pytest.raises(Exception, match=r"(?i)matmul"):
        made.run([bad, bad])

"""BoundRunner on the CPU, whose memory ONNX Runtime binds as it binds CUDA's, against the plain runner."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from support.cpu_model import cpu_model
from support.graphs import graph
from support.tiny import SIDE, tiny_model, write_model
from vistazo_server.engine.batch_limit import BatchLimit
from vistazo_server.engine.bound_runner import BoundRunner
from vistazo_server.engine.graph import read_signature
from vistazo_server.engine.runner import StackingRunner
from vistazo_server.telemetry.statistics import RunStatistics

MAX_BATCH_SIZE = 6


@pytest.fixture(scope="module")
def session():
    return ort.InferenceSession(tiny_model().SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def signature(session):
    return read_signature(session, Path("tiny"), image_input="images")


def samples(count: int, seed: int):
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


async def test_a_model_runs_as_many_batches_at_once_as_it_has_instances(tmp_path):
    folder = write_model(tmp_path, model=tiny_model(cost=2))
    limit = BatchLimit(ceiling=4, is_fixed=True)
    with cpu_model(folder, "tiny", batch_limit=limit, instances=2) as model:
        await model.load()
        both_run = threading.Barrier(2, timeout=30)

        def take(seed):
            def taken():
                # Each waits for the other: with one instance this would never end.
                both_run.wait()
                return samples(3, seed)

            return taken

        first, second = await asyncio.gather(model.run(take(1)), model.run(take(2)))
        (again,) = await asyncio.gather(model.run(lambda: samples(3, 1)))
        await model.close()

    assert np.array_equal(values(first.rows), values(again.rows))
    assert not np.array_equal(values(first.rows), values(second.rows))


def values(rows):
    return np.array([row.outputs.arrays[0][row.at] for row in rows])


def test_every_batch_size_gives_what_the_plain_runner_gives_in_any_order(session, signature):
    bound = BoundRunner(session, signature, max_batch_size=MAX_BATCH_SIZE, device="cpu")
    plain = StackingRunner(session, signature, max_batch_size=MAX_BATCH_SIZE)

    for seed, count in enumerate([1, 6, 3, 2, 6, 5, 4, 1, 3]):
        batch = samples(count, seed)
        assert np.array_equal(values(bound.run(batch)), values(plain.run(batch)))


def test_rows_stay_as_they_are_when_the_next_batch_runs(session, signature):
    bound = BoundRunner(session, signature, max_batch_size=MAX_BATCH_SIZE, device="cpu")
    first = bound.run(samples(3, 1))
    before = values(first).copy()
    bound.run(samples(3, 2))

    assert np.array_equal(values(first), before)


def test_runs_are_counted(session, signature):
    bound = BoundRunner(session, signature, max_batch_size=MAX_BATCH_SIZE, device="cpu")
    statistics = RunStatistics()
    bound.run(samples(3, 1), statistics)
    bound.run(samples(5, 1), statistics)

    assert {size: one.count for size, one in statistics.sizes.items()} == {3: 1, 5: 1}


def test_outputs_whose_shape_depends_on_the_data_are_those_of_their_own_run():
    """A binding that is kept keeps the outputs of its first run, and their shapes."""
    model = graph(
        [
            helper.make_node("ReduceMax", ["x", "axes"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["chosen"], to=TensorProto.BOOL),
            helper.make_node("Compress", ["x", "chosen"], ["y"], axis=1),
        ],
        {"x": ("FP32", ("n", 4))},
        {"y": ("FP32", ("n", "k"))},
        axes=np.array([0]),
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    signature = read_signature(session, Path("compress"), image_input=None)
    bound = BoundRunner(session, signature, max_batch_size=4, device="cpu")
    plain = StackingRunner(session, signature, max_batch_size=4)

    earlier = []
    for row in ([1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [5, 6, 7, 8]):
        batch = [np.array(row, dtype=np.float32)] * 2
        given = values(bound.run(batch))
        assert np.array_equal(given, values(plain.run(batch)))
        earlier.append((given, given.copy()))
    assert all(np.array_equal(given, kept) for given, kept in earlier)

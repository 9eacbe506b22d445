"""The predictor: what is refused before it costs anything, and who leaves while it does."""

import asyncio
import threading
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from vistazo_server.batching.batch import Answer
from vistazo_server.engine.outputs import BatchOutputs, Row
from vistazo_server.engine.tensors import FREE, Signature, TensorSpec
from vistazo_server.errors import DeadlineExceededError, DeadlineUnreachableError, InvalidRequestError
from vistazo_server.inference.predictor import ModelInputs, OutputChoice, Predictor, Undecoded
from vistazo_server.inference.ranking import largest
from vistazo_server.inference.side_thread import SideThread
from vistazo_server.telemetry.metrics import Metrics, ModelMetrics

LARGE = 1.0
"""Seconds: nothing predicted to take so long is done on the loop."""
SIGNATURE = Signature((TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (FREE,)),), is_batched=True)
INPUTS = ModelInputs([np.ones((1, 2), np.float32)], ())


class Batcher:
    """Answers with the rows it was made with, and keeps what it was asked; may be full."""

    def __init__(self, rows=(), *, is_full=False):
        self.rows = rows
        self.is_full = is_full
        self.checks = []
        self.asked = 0

    def check_admission(self, samples, deadline, *, ready_in=0.0):
        self.checks.append((samples, ready_in))
        if self.is_full:
            raise DeadlineUnreachableError("full", retry_after=1.0)

    async def infer(self, samples, *, deadline):
        self.asked += 1
        return Answer(self.rows, len(samples), 0.0, 0.0)


class Asked:
    """A predictor on a batcher, and how its requests ended."""

    def __init__(self, batcher, side):
        self.registry = CollectorRegistry()
        self.predictor = Predictor(
            SIGNATURE,
            labels=("a", "b"),
            batcher=batcher,
            metrics=ModelMetrics(Metrics(self.registry), "m", "1"),
            side=side,
            default_deadline=30.0,
            prepare_images=None,
        )

    async def predict(self, given=INPUTS, *, classes=0, deadline=None):
        outputs = [OutputChoice(0, classes)]
        (tensor,) = await self.predictor.predict(given, outputs=outputs, deadline=deadline)
        return tensor

    def ended(self, outcome):
        labels = {"model": "m", "version": "1", "outcome": outcome}
        return self.registry.get_sample_value("vistazo_inference_requests_total", labels)


@pytest.fixture
def side():
    thread = SideThread()
    yield thread
    thread.close()


def one_row(values=(1.0, 2.0)):
    return [Row(BatchOutputs((np.array([values], np.float32),)), 0)]


def undecoded(decode, *, seconds=LARGE, samples=3):
    return Undecoded(samples, seconds, decode)


async def test_a_large_request_that_would_be_refused_is_never_decoded(side):
    batcher = Batcher(is_full=True)
    asked = Asked(batcher, side)
    with pytest.raises(DeadlineUnreachableError):
        await asked.predict(undecoded(lambda: pytest.fail("it was decoded")))

    assert batcher.checks == [(3, side.ready_in(LARGE))]
    assert batcher.asked == 0
    assert asked.ended("rejected") == 1


@pytest.mark.parametrize("seconds", [0.0, LARGE])
async def test_what_was_decoded_reaches_the_batcher_once(side, seconds):
    threads = []

    def decode():
        threads.append(threading.current_thread())
        yield
        return INPUTS

    batcher = Batcher(one_row())
    tensor = await Asked(batcher, side).predict(undecoded(decode, seconds=seconds))

    assert tensor.array.tolist() == [[1.0, 2.0]]
    assert batcher.asked == 1
    assert (threads == [threading.current_thread()]) is (seconds == 0.0)
    # Of a small one, the batcher's own look is soon enough.
    assert len(batcher.checks) == (1 if seconds else 0)


@pytest.mark.parametrize("seconds", [0.0, LARGE])
async def test_values_that_are_wrong_are_the_callers_mistake(side, seconds):
    def decode():
        yield
        raise InvalidRequestError("input 'x': expected UINT8 values of 0 to 255, got 256")

    batcher = Batcher(one_row())
    asked = Asked(batcher, side)
    with pytest.raises(InvalidRequestError, match="got 256"):
        await asked.predict(undecoded(decode, seconds=seconds))

    assert batcher.asked == 0
    assert asked.ended("invalid") == 1


async def test_who_leaves_or_runs_out_of_time_while_its_request_is_decoded_is_told_at_once(side):
    goes_on = threading.Event()

    def decode():
        goes_on.wait(10)
        yield
        return INPUTS

    batcher = Batcher(one_row())
    asked = Asked(batcher, side)
    with pytest.raises(DeadlineExceededError):
        await asked.predict(undecoded(decode), deadline=time.monotonic() + 0.05)
    leaving = asyncio.create_task(asked.predict(undecoded(decode)))
    while len(batcher.checks) < 2:
        await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert not goes_on.is_set()
    goes_on.set()

    assert batcher.asked == 0
    assert (asked.ended("deadline"), asked.ended("cancelled")) == (1, 1)
    assert (await asked.predict()).array.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(("samples", "size"), [(1, 3), (3, 700), (2, 10_000)])
@pytest.mark.parametrize("classes", [1, 5, 10_000])
async def test_classes_are_the_same_text_however_large_the_answer(side, samples, size, classes):
    values = np.random.default_rng(size).normal(size=(samples, size)).astype(np.float32)
    outputs = BatchOutputs((values,))
    batcher = Batcher([Row(outputs, at) for at in range(samples)])
    tensor = await Asked(batcher, side).predict(classes=classes)

    expected = [
        [
            f"{float(row[index]):.6f}:{index}" + (f":{'ab'[index]}" if index < 2 else "")
            for index in largest(row, classes)
        ]
        for row in values
    ]
    assert (tensor.datatype, tensor.array.shape) == ("BYTES", (samples, min(classes, size)))
    assert tensor.array.tolist() == expected


@pytest.mark.parametrize("size", [3, 400_000])
async def test_rows_of_several_batches_are_joined_in_their_order_to_the_bit(side, size):
    batches = [np.random.default_rng(at).random((2, size), np.float32) for at in range(2)]
    rows = [Row(BatchOutputs((batch,)), at) for batch in batches for at in range(2)]
    tensor = await Asked(Batcher(rows), side).predict()

    assert tensor.array.tobytes() == b"".join(batch.tobytes() for batch in batches)

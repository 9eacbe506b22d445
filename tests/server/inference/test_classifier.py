"""Top-k: its order, its bits, and who pays for it; the rest is seen in tests/service."""

import asyncio
import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from prometheus_client import CollectorRegistry

from vistazo_server.artifact.manifest import ImageSpec, ModelSpec, ScoreKind, ScoresSpec
from vistazo_server.batching.batch import Answer
from vistazo_server.engine.outputs import BatchOutputs, Row
from vistazo_server.engine.tensors import Signature, TensorSpec
from vistazo_server.errors import (
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    InvalidRequestError,
)
from vistazo_server.inference.classifier import MOST_SHARED_SCORES, SHARED_TOP_K, Classifier
from vistazo_server.inference.probabilities import sigmoid, softmax
from vistazo_server.inference.ranking import top_classes
from vistazo_server.inference.side_thread import SideThread
from vistazo_server.telemetry.metrics import Metrics, ModelMetrics
from vistazo_server.telemetry.statistics import RunStatistics


def test_the_largest_come_first():
    assert top_classes(np.array([[0.1, 3.0, -2.0, 1.0], [4.0, 3.0, 2.0, 1.0]]), 3).tolist() == [
        [1, 3, 0],
        [0, 1, 2],
    ]


def test_equal_values_come_by_lower_index():
    assert top_classes(np.array([[1.0, 2.0, 2.0, 1.0, 2.0]]), 4).tolist() == [[1, 2, 4, 0]]


@given(
    rows=arrays.arrays(
        np.float32,
        # Few classes and many are sorted in two ways.
        st.tuples(st.integers(1, 3), st.integers(1, 30) | st.integers(60, 90)),
        elements=st.integers(-5, 5).map(float),
    ),
    data=st.data(),
)
def test_top_k_is_the_head_of_the_full_order(rows, data):
    k = data.draw(st.integers(1, rows.shape[1]))

    for row, best in zip(rows, top_classes(rows, k).tolist(), strict=True):
        full_order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        assert best == full_order[:k]


# Who pays


class Images:
    """Takes images as they are: each is the number of a row."""

    def need_nothing(self, images):
        return not any(isinstance(image, InvalidImageError) for image in images)

    async def prepare(self, images, deadline):
        return images


class Ridden:
    """A batcher whose run was made: a sample gets the row of its number."""

    def __init__(self, *scores):
        self.batches = [BatchOutputs((one,)) for one in scores]
        self.rows = [Row(batch, at) for batch in self.batches for at in range(len(batch.arrays[0]))]

    async def infer(self, samples, *, deadline):
        return Answer([self.rows[int(sample)] for sample in samples], len(samples), 0.0, 0.0)


class Watched(Classifier):
    """A classifier that keeps how many rows were ranked together, to which k, and where."""

    def __init__(self, batcher, side, *, classes, kind=ScoreKind.LOGITS, is_binary=False):
        # Nothing is preprocessed here.
        image = ImageSpec(None, "images")
        labels = tuple(f"label {index}" for index in range(classes))
        self.registry = CollectorRegistry()
        super().__init__(
            ModelSpec("m", image, ScoresSpec("scores", kind, is_binary), labels, "untrained", "fp32", 0, ""),
            "1",
            signature=Signature(
                (TensorSpec("images", "UINT8", (1, 1, 1)),),
                (TensorSpec("scores", "FP32", (classes,)),),
                is_batched=True,
            ),
            images=Images(),
            batcher=batcher,
            metrics=ModelMetrics(Metrics(self.registry), "m", "1"),
            runs=RunStatistics(),
            side=side,
            default_deadline=30.0,
        )
        self.ranked = []
        self.threads = set()

    def _rank(self, scores, top_k):
        self.ranked.append((len(scores), top_k))
        self.threads.add(threading.current_thread())
        return super()._rank(scores, top_k)

    async def ask(self, *numbers, top_k, deadline=None, **more):
        """Return the indexes and the bits of the probabilities of the images with these numbers."""
        images = [np.array(number) if number >= 0 else InvalidImageError("bad") for number in numbers]
        classified = await self.classify(images, top_k=top_k, deadline=deadline, **more)
        await asyncio.sleep(0)  # or all that a test asks would be one turn of the loop
        return [
            None
            if isinstance(result, InvalidImageError)
            else (result.indexes.tolist(), result.probabilities.tobytes())
            for result in classified.results
        ]


@pytest.fixture
def side():
    thread = SideThread()
    yield thread
    thread.close()


def scores_of(images, classes, seed=0):
    return np.random.default_rng(seed).normal(scale=3, size=(images, classes)).astype(np.float32)


def ranked_as_a_whole(scores, k):
    """Return what each row gets when the whole batch is ranked for this k alone."""
    scores = scores.reshape(len(scores), -1).astype(np.float32)
    probabilities = softmax(scores)
    best = top_classes(probabilities, k)
    return [
        (indexes.tolist(), values[indexes].tobytes())
        for indexes, values in zip(best, probabilities, strict=True)
    ]


@pytest.mark.parametrize("classes", [3, 10, 64, 65, 1000])
@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("kind", ["plain", "half", "trailing"])
async def test_the_answer_to_the_bit_is_the_same_whoever_works_it_out(side, classes, batch, kind):
    scores = scores_of(batch, classes)
    if kind == "half":
        scores = scores.astype(np.float16)
    if kind == "trailing":
        scores = scores.reshape(batch, classes, 1, 1)
    for k in sorted({1, 5, SHARED_TOP_K, SHARED_TOP_K + 1, classes}):
        if k > classes:
            continue
        expected = ranked_as_a_whole(scores, k)
        shared = Watched(Ridden(scores), side, classes=classes)
        for number in range(batch):
            assert await shared.ask(number, top_k=k) == [expected[number]]
        in_one = await Watched(Ridden(scores), side, classes=classes).ask(*range(batch), top_k=k)
        assert in_one == expected


@pytest.mark.parametrize("top_k", [5, 1000])
async def test_so_it_is_for_hundreds_of_images_beside_the_loop_over_several_batches(side, top_k):
    batches = [scores_of(32, 1000, seed) for seed in range(8)]
    expected = []
    for scores in batches:
        expected += await asyncio.to_thread(ranked_as_a_whole, scores, top_k)
    classifier = Watched(Ridden(*batches), side, classes=1000)
    answer = await classifier.ask(*range(100), -1, *range(100, 256), top_k=top_k)

    assert answer == [*expected[:100], None, *expected[100:]]
    assert threading.current_thread() not in classifier.threads


async def test_batch_mates_share_one_ranking_whatever_small_k_they_ask_for(side):
    classifier = Watched(Ridden(scores_of(16, 1000)), side, classes=1000)
    for number in range(16):
        await classifier.ask(number, top_k=1 + number % SHARED_TOP_K)

    assert classifier.ranked == [(16, SHARED_TOP_K)]
    assert classifier.threads == {threading.current_thread()}


async def test_who_asks_for_many_classes_has_only_its_own_rows_ranked(side):
    classifier = Watched(Ridden(scores_of(16, 1000)), side, classes=1000)
    await classifier.ask(3, top_k=900)
    await classifier.ask(4, 9, top_k=1000)
    for number in range(16):
        await classifier.ask(number, top_k=5)

    assert classifier.ranked == [(1, 900), (1, 1000), (1, 1000), (16, SHARED_TOP_K)]


async def test_a_batch_with_too_many_scores_is_not_ranked_by_the_first_that_asks(side):
    classes = MOST_SHARED_SCORES // 16 + 1
    classifier = Watched(Ridden(scores_of(16, classes)), side, classes=classes)
    await classifier.ask(2, top_k=5)
    await classifier.ask(5, top_k=5)

    assert classifier.ranked == [(1, 5), (1, 5)]


async def test_one_image_with_very_many_classes_is_ranked_beside_the_loop(side):
    scores = scores_of(2, 200_000)
    classifier = Watched(Ridden(scores), side, classes=200_000)

    assert await classifier.ask(1, top_k=5) == ranked_as_a_whole(scores, 5)[1:]
    assert threading.current_thread() not in classifier.threads


@pytest.mark.parametrize("top_k", [1, 5, 1000])
@pytest.mark.parametrize("mates", [0, 99])
async def test_values_that_are_not_finite_fail_their_own_request_alone(side, top_k, mates):
    scores = scores_of(200, 1000)
    scores[7, 3] = np.nan
    expected = await asyncio.to_thread(ranked_as_a_whole, np.delete(scores, 7, axis=0), top_k)
    classifier = Watched(Ridden(scores), side, classes=1000)
    with pytest.raises(InferenceError, match="not finite"):
        await classifier.ask(7, *range(100, 100 + mates), top_k=top_k)

    assert await classifier.ask(6, top_k=top_k) == expected[6:7]
    assert await classifier.ask(*range(8, 108), top_k=top_k) == expected[7:107]


async def test_a_deadline_that_passes_while_classes_are_ranked_ends_the_request_at_once(side):
    class Stuck(Watched):
        goes_on = threading.Event()

        def _rank(self, scores, top_k):
            self.goes_on.wait(10)
            return super()._rank(scores, top_k)

    classifier = Stuck(Ridden(scores_of(64, 1000)), side, classes=1000)
    asked = classifier.ask(*range(64), top_k=1000, deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceededError):
        await asked
    gone = asyncio.create_task(classifier.ask(*range(64), top_k=1000))
    await asyncio.sleep(0.01)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not Stuck.goes_on.is_set()
    Stuck.goes_on.set()

    def ended(outcome):
        return classifier.registry.get_sample_value(
            "vistazo_inference_requests_total", {"model": "m", "version": "1", "outcome": outcome}
        )

    assert (ended("deadline"), ended("cancelled")) == (1, 1)


# Kinds of scores


async def probabilities_of(scores, side, kind, *, is_binary=False, **asked):
    """Return, for each row, its probabilities by index, as answered to one request."""
    classes = 2 if is_binary else int(np.prod(scores.shape[1:]))
    classifier = Watched(Ridden(scores), side, classes=classes, kind=kind, is_binary=is_binary)
    answers = await classifier.ask(*range(len(scores)), **{"top_k": classes} | asked)
    return [
        dict(zip(indexes, np.frombuffer(bits, np.float32).tolist(), strict=True)) for indexes, bits in answers
    ]


@pytest.mark.parametrize("kind", ScoreKind)
async def test_each_kind_makes_probabilities_in_its_own_way(side, kind):
    scores = scores_of(4, 12) if "LOGITS" in kind.name else softmax(scores_of(4, 12))
    wide = scores.astype(np.float64)
    expected = {
        ScoreKind.LOGITS: np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True),
        ScoreKind.INDEPENDENT_LOGITS: 1 / (1 + np.exp(-wide)),
    }.get(kind, wide)
    for row, found in zip(expected, await probabilities_of(scores, side, kind), strict=True):
        assert found == pytest.approx(dict(enumerate(row)), rel=1e-5)
        assert list(found) == sorted(found, key=lambda index: (-found[index], index))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
def test_a_sigmoid_of_any_size_overflows_nowhere_and_keeps_its_digits(values):
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = sigmoid(np.array([values], np.float32))

    assert found.dtype == np.float32
    for value, probability in zip(values, found[0].tolist(), strict=True):
        exact = 1 / (1 + math.exp(-value)) if value > -700 else 0.0
        assert 0 <= probability <= 1
        assert probability == pytest.approx(exact, rel=1e-5, abs=1e-40)


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
async def test_one_score_is_of_the_second_of_two_classes(side, shape, dtype):
    logits = np.array([-30, -0.5, 0.25, 9]).reshape(shape).astype(dtype)
    exact = [1 / (1 + math.exp(-float(value))) for value in logits.ravel()]
    ends = [
        (logits, ScoreKind.INDEPENDENT_LOGITS),
        (sigmoid(logits.astype(np.float32)), ScoreKind.INDEPENDENT),
    ]
    for scores, kind in ends:
        found = await probabilities_of(scores, side, kind, is_binary=True)
        for p, answer in zip(exact, found, strict=True):
            assert answer == pytest.approx({0: 1 - p, 1: p}, abs=1e-6)


@pytest.mark.parametrize("kind", [ScoreKind.INDEPENDENT, ScoreKind.PROBABILITIES])
async def test_what_rounding_leaves_outside_the_range_is_put_into_it(side, kind):
    (answer,) = await probabilities_of(np.array([[1.0039, -0.004, 0.5]], np.float32), side, kind)

    assert answer == {0: 1, 2: 0.5, 1: 0}


@pytest.mark.parametrize("classes", [12, 1000])
@pytest.mark.parametrize("kind", ScoreKind)
async def test_only_what_is_probable_enough_is_answered_and_top_k_still_caps(side, kind, classes):
    scores = scores_of(3, classes)
    if "LOGITS" not in kind.name:
        scores = sigmoid(scores)
    every = await probabilities_of(scores, side, kind)
    edges = [0.0, 1e-30, 0.5, 1.0, *list(every[0].values())[:15:7]]
    for least in edges:
        for top_k in (1, 5, SHARED_TOP_K + 1, classes):
            if top_k > classes:
                continue
            found = await probabilities_of(scores, side, kind, top_k=top_k, min_probability=least)
            for row, answer in zip(every, found, strict=True):
                probable = [(index, p) for index, p in row.items() if p >= np.float32(least)]
                assert list(answer.items()) == probable[:top_k]


async def test_batch_mates_with_other_thresholds_share_one_ranking(side):
    classifier = Watched(Ridden(scores_of(4, 1000)), side, classes=1000, kind=ScoreKind.INDEPENDENT_LOGITS)
    answers = [
        await classifier.ask(number, top_k=top_k, min_probability=least)
        for number, (top_k, least) in enumerate([(5, 0.0), (10, 1.0), (1, 0.5), (10, 0.9999)])
    ]

    assert classifier.ranked == [(4, SHARED_TOP_K)]
    assert [len(answer[0][0]) for answer in answers][:3] == [5, 0, 1]


@pytest.mark.parametrize("least", [math.nan, -0.01, 1.01, math.inf, -math.inf])
async def test_a_threshold_that_is_no_probability_is_refused_by_name(side, least):
    with pytest.raises(InvalidRequestError, match="min_probability: expected 0 to 1, got"):
        await Watched(Ridden(scores_of(1, 3)), side, classes=3).ask(0, top_k=1, min_probability=least)


@pytest.mark.parametrize("kind", ScoreKind)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
async def test_whatever_the_kind_values_that_are_not_finite_are_no_answer(side, kind, bad):
    scores = sigmoid(scores_of(3, 12))
    scores[1, 4] = bad
    classifier = Watched(Ridden(scores), side, classes=12, kind=kind)
    with pytest.raises(InferenceError, match="not finite"):
        await classifier.ask(1, top_k=3, min_probability=1.0)
    assert await classifier.ask(0, 2, top_k=3)

"""Classifier: images in, labelled predictions out. Plain values; no protobuf, no ONNX."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vistazo_server.artifact.manifest import ModelSpec
from vistazo_server.batching.batch import Answer
from vistazo_server.batching.batcher import DynamicBatcher
from vistazo_server.engine.outputs import Row
from vistazo_server.engine.tensors import Array, Signature
from vistazo_server.errors import InferenceError, InvalidImageError, InvalidRequestError
from vistazo_server.inference.image_inputs import ImageInput, ImageInputs
from vistazo_server.inference.predictor import Predictor
from vistazo_server.inference.probabilities import probabilities
from vistazo_server.inference.ranking import top_classes
from vistazo_server.inference.side_thread import INLINE_SECONDS, SideThread, Steps
from vistazo_server.telemetry.metrics import ModelMetrics
from vistazo_server.telemetry.outcome import outcome_of
from vistazo_server.telemetry.statistics import RunStatistics

DEFAULT_TOP_K: Final = 5

# The best so many classes of each image are found once for a whole batch, whatever its members ask for. Twice
# the default costs no more than that, as the values below them are not sorted.
SHARED_TOP_K: Final = 10
# Unless that would take some 5 ms for all scores of the batch: whoever asks is then answered alone.
MOST_SHARED_SCORES: Final = 1 << 18
# For each score of an image: to find the best few, and to sort many.
_FIND_SECONDS: Final = 20e-9
_SORT_SECONDS: Final = 90e-9

_NO_ANSWER: Final = Answer(rows=(), batch_size=0, queue_seconds=0.0, compute_seconds=0.0)


class Ranking(NamedTuple):
    """The most probable classes of one image, most probable first; none where none is probable enough."""

    indexes: NDArray[np.intp]
    probabilities: NDArray[np.float32]


@dataclass(slots=True)  # not frozen: one is made for each request, and a frozen one takes three times as long
class Classified:
    """The answer to one request."""

    results: Sequence[Ranking | InvalidImageError]
    """For each image, in order: its classes, or why there are none."""
    batch_size: int
    queue_seconds: float
    preprocess_seconds: float
    compute_seconds: float


class Classifier:
    """One model version, ready to answer."""

    def __init__(
        self,
        spec: ModelSpec,
        version: str,
        *,
        signature: Signature,
        images: ImageInputs | None,
        batcher: DynamicBatcher,
        metrics: ModelMetrics,
        runs: RunStatistics,
        side: SideThread,
        default_deadline: float,
        output_labels: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.spec = spec
        self.version = version
        self.metrics = metrics
        self.runs = runs
        self.side = side
        """For what would hold the event loop too long."""
        self.predictor = Predictor(
            signature,
            labels=spec.labels,
            scores=spec.scores,
            output_labels=output_labels,
            batcher=batcher,
            metrics=metrics,
            side=side,
            default_deadline=default_deadline,
            prepare_images=None if images is None else images.prepare,
        )
        """The same model, asked with tensors."""
        self._images = images
        self._batcher = batcher
        self._default_deadline = default_deadline
        names = [output.name for output in signature.outputs]
        self._scores_at = 0 if spec.image is None or spec.scores is None else names.index(spec.scores.tensor)

    async def classify(
        self,
        images: Sequence[ImageInput],
        *,
        top_k: int | None,
        deadline: float | None,
        min_probability: float = 0.0,
    ) -> Classified:
        """Return the `top_k` classes of each image (None: 5, or all when there are fewer).

        Those below `min_probability`, 0 to 1, are left out, and so there may be none. `deadline` is in
        time.monotonic's seconds; None: the model's default. A bad image fails alone, unless it is the only
        one. Raises ServingError.
        """
        started = time.perf_counter()
        if deadline is None:
            deadline = time.monotonic() + self._default_deadline
        metrics = self.metrics
        try:
            source = self._image_inputs()
            choice = _Choice(self._checked_top_k(top_k), _checked_probability(min_probability))
            inputs = (
                images if source.need_nothing(images) else _located(await source.prepare(images, deadline))
            )
            prepared = time.perf_counter()
            samples = [image for image in inputs if not isinstance(image, InvalidImageError)]
            answer = await self._batcher.infer(samples, deadline=deadline) if samples else _NO_ANSWER
            answered = time.perf_counter()
            seconds = self._ranking_seconds(len(samples), choice.top_k)
            results = (
                self._results(inputs, answer.rows, choice)
                if seconds < INLINE_SECONDS
                else await self.side.run(
                    self._own_results(inputs, answer.rows, choice), seconds=seconds, deadline=deadline
                )
            )
        except BaseException as error:
            metrics.request_ended(outcome_of(error, deadline))
            raise
        ended = time.perf_counter()
        metrics.request_answered(
            seconds=ended - started,
            queue=answer.queue_seconds,
            preprocess=prepared - started,
            compute=answer.compute_seconds,
            postprocess=ended - answered,
        )
        return Classified(
            results, answer.batch_size, answer.queue_seconds, prepared - started, answer.compute_seconds
        )

    def _image_inputs(self) -> ImageInputs:
        if self._images is None:
            raise InvalidRequestError(
                f"model: {self.spec.name} takes tensors, not images: no manifest says how its input is made "
                "of them; it is served over Open Inference (inference.GRPCInferenceService)"
            )
        return self._images

    def _checked_top_k(self, top_k: int | None) -> int:
        classes = len(self.spec.labels)
        if top_k is None:
            return min(DEFAULT_TOP_K, classes)
        if not 1 <= top_k <= classes:
            raise InvalidRequestError(f"top_k: expected 1 to {classes}, the number of classes, got {top_k}")
        return top_k

    def _ranking_seconds(self, images: int, top_k: int) -> float:
        """Return how long it is predicted to take to rank the classes of a request's images."""
        each = _FIND_SECONDS if top_k <= SHARED_TOP_K else _SORT_SECONDS
        return images * len(self.spec.labels) * each

    def _results(
        self, inputs: Sequence[Array | InvalidImageError], rows: Sequence[Row], choice: "_Choice"
    ) -> list[Ranking | InvalidImageError]:
        if len(rows) == len(inputs):
            return [self._ranking(row, choice) for row in rows]
        following = iter(rows)
        return [
            image if isinstance(image, InvalidImageError) else self._ranking(next(following), choice)
            for image in inputs
        ]

    def _own_results(
        self, inputs: Sequence[Array | InvalidImageError], rows: Sequence[Row], choice: "_Choice"
    ) -> Steps[list[Ranking | InvalidImageError]]:
        """Return the same as `_results`, as steps of one image each, which share nothing with batch-mates."""
        following = iter(rows)
        results: list[Ranking | InvalidImageError] = []
        for image in inputs:
            results.append(
                image if isinstance(image, InvalidImageError) else self._own_ranking(next(following), choice)
            )
            yield
        return results

    def _ranking(self, row: Row, choice: "_Choice") -> Ranking:
        outputs, at = row
        scores = outputs.arrays[self._scores_at]
        if choice.top_k > SHARED_TOP_K or scores.size > MOST_SHARED_SCORES:
            return self._own_ranking(row, choice)
        most = min(SHARED_TOP_K, len(self.spec.labels))
        return self._checked(outputs.derive("best", lambda: self._rank(scores, most)), at, choice)

    def _own_ranking(self, row: Row, choice: "_Choice") -> Ranking:
        outputs, at = row
        return self._checked(
            self._rank(outputs.arrays[self._scores_at][at : at + 1], choice.top_k), 0, choice
        )

    def _checked(self, best: "_Best", at: int, choice: "_Choice") -> Ranking:
        indexes, probable, finite = best
        if not finite[at]:
            raise InferenceError(f"the model {self.spec.name} gave values that are not finite")
        top_k, least = choice
        if least > 0:
            # Most probable first: what is probable enough stands before what is not.
            top_k = int(np.count_nonzero(probable[at, :top_k] >= np.float32(least)))
        return Ranking(indexes[at, :top_k], probable[at, :top_k])

    def _rank(self, scores: Array, top_k: int) -> "_Best":
        if scores.ndim != 2 or scores.dtype != np.float32:
            # Imported models may end in FP16, or in dimensions of 1.
            scores = scores.reshape(len(scores), -1).astype(np.float32)
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(scores), axis=1)
        if not finite.all():
            scores = np.where(finite[:, np.newaxis], scores, np.float32(0))
        if self.spec.scores is None:
            raise TypeError("the model says nothing of its scores")
        probable = probabilities(scores, self.spec.scores)
        indexes = top_classes(probable, top_k)
        return _Best(indexes, probable[np.arange(len(scores))[:, np.newaxis], indexes], finite)


class _Choice(NamedTuple):
    """Which of its classes an image gets."""

    top_k: int
    min_probability: float


class _Best(NamedTuple):
    """For each image of a batch: its best classes, their probabilities, and whether all values are finite."""

    indexes: NDArray[np.intp]
    probabilities: NDArray[np.float32]
    finite: NDArray[np.bool_]


def _checked_probability(least: float) -> float:
    if not 0 <= least <= 1:  # NaN, too
        raise InvalidRequestError(f"min_probability: expected 0 to 1, got {least:g}")
    return least


def _located(samples: Sequence[Array | InvalidImageError]) -> Sequence[Array | InvalidImageError]:
    """Let what is wrong with an image say which it is; raise it when there is no other."""
    located = [
        InvalidImageError(f"images[{index}]: {sample}") if isinstance(sample, InvalidImageError) else sample
        for index, sample in enumerate(samples)
    ]
    if len(located) == 1 and isinstance(located[0], InvalidImageError):
        raise located[0]
    return located

"""Classifier: images in, labelled predictions out. Plain values; no protobuf, no ONNX."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeGuard, TypeVar, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from vistazo_server import tracing
from vistazo_server.batcher import Answer, DynamicBatcher
from vistazo_server.errors import (
    InferenceError,
    InvalidImageError,
    InvalidRequestError,
    QueueFullError,
    ServingError,
)
from vistazo_server.manifest import ModelSpec
from vistazo_server.metrics import ModelMetrics
from vistazo_server.outputs import Row
from vistazo_server.preprocess import Preprocessor

DEFAULT_TOP_K: Final = 5

DEADLINE_TOLERANCE: Final = 0.02
"""Seconds before the deadline from which a cancelled request counts as one whose deadline passed: the caller
starts its clock when it sends, the server when the request arrives."""

ImageInput = bytes | NDArray[np.uint8] | InvalidImageError
"""An encoded file, uint8 H×W×C pixels, or why the decoder of the request could not get either."""

_OUTCOME: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "rejected",
    grpc.StatusCode.UNAVAILABLE: "rejected",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline",
}

_NO_ANSWER: Final = Answer(rows=(), batch_size=0, queue_seconds=0.0, compute_seconds=0.0)

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Ranking(NamedTuple):
    """The most probable classes of one image, most probable first."""

    indexes: Sequence[int]
    probabilities: Sequence[float]


@dataclass(slots=True)  # not frozen: one is made for each request, and a frozen one takes three times as long
class Classified:
    """The answer to one request."""

    results: Sequence[Ranking | InvalidImageError]
    """For each image, in order: its classes, or why there are none."""
    batch_size: int
    queue_seconds: float
    preprocess_seconds: float
    compute_seconds: float


class PreprocessPool:
    """Threads that decode and resize images, shared by all models, with a bound on what waits for them."""

    def __init__(self, *, threads: int, limit: int) -> None:
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="preprocess")
        self._threads = threads
        self._limit = limit
        self._pending = 0

    @property
    def pending(self) -> int:
        """Images that wait or are being worked on."""
        return self._pending

    async def map(self, work: Callable[[_In], _Out], images: Sequence[_In]) -> list[_Out | BaseException]:
        """Return `work(image)`, or what it raised, for each image. Raises QueueFullError."""
        if self._pending and self._pending + len(images) > self._limit:
            raise QueueFullError(
                f"{self._pending} images wait to be decoded, {len(images)} more would pass the limit of "
                f"{self._limit}",
                retry_after=0.005 * self._pending / self._threads,  # a photograph takes about 5 ms
            )
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._executor, work, image) for image in images]
        for future in futures:
            self._pending += 1
            future.add_done_callback(self._done)
        return await asyncio.gather(*futures, return_exceptions=True)

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _done(self, _: object) -> None:
        self._pending -= 1


class Classifier:
    """One model version, ready to answer."""

    def __init__(
        self,
        spec: ModelSpec,
        version: str,
        *,
        preprocessor: Preprocessor,
        pool: PreprocessPool,
        batcher: DynamicBatcher,
        metrics: ModelMetrics,
        default_deadline: float,
    ) -> None:
        self.spec = spec
        self.version = version
        self._preprocessor = preprocessor
        self._pool = pool
        self._batcher = batcher
        self._metrics = metrics
        self._default_deadline = default_deadline

    async def classify(
        self, images: Sequence[ImageInput], *, top_k: int | None, deadline: float | None
    ) -> Classified:
        """Return the `top_k` classes of each image (None: 5, or all when there are fewer).

        `deadline` is in time.monotonic's seconds; None: the model's default. A bad image fails alone,
        unless it is the only one. Raises ServingError.
        """
        started = time.perf_counter()
        if deadline is None:
            deadline = time.monotonic() + self._default_deadline
        metrics = self._metrics
        try:
            top_k = self._checked_top_k(top_k)
            inputs = images if self._need_nothing(images) else await self._preprocess(images, deadline)
            prepared = time.perf_counter()
            samples = [image for image in inputs if not isinstance(image, InvalidImageError)]
            answer = await self._batcher.infer(samples, deadline=deadline) if samples else _NO_ANSWER
            answered = time.perf_counter()
            results = self._results(inputs, answer.rows, top_k)
        except asyncio.CancelledError:
            # grpc cancels the handler when the deadline passes; its clock and ours differ by a few moments.
            late = time.monotonic() > deadline - DEADLINE_TOLERANCE
            metrics.request_ended("deadline" if late else "cancelled")
            raise
        except ServingError as error:
            metrics.request_ended(_OUTCOME.get(error.code, "error"))
            raise
        except Exception:
            metrics.request_ended("error")
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

    def _checked_top_k(self, top_k: int | None) -> int:
        classes = len(self.spec.labels)
        if top_k is None:
            return min(DEFAULT_TOP_K, classes)
        if not 1 <= top_k <= classes:
            raise InvalidRequestError(f"top_k: expected 1 to {classes}, the number of classes, got {top_k}")
        return top_k

    def _results(
        self, inputs: Sequence[NDArray[np.uint8] | InvalidImageError], rows: Sequence[Row], top_k: int
    ) -> list[Ranking | InvalidImageError]:
        if len(rows) == len(inputs):
            return [self._ranking(row, top_k) for row in rows]
        following = iter(rows)
        return [
            image if isinstance(image, InvalidImageError) else self._ranking(next(following), top_k)
            for image in inputs
        ]

    def _need_nothing(self, images: Sequence[ImageInput]) -> TypeGuard[Sequence[NDArray[np.uint8]]]:
        shape = self._preprocessor.shape
        for image in images:  # noqa: SIM110  most requests are of one image, and all() costs more than that
            if not isinstance(image, np.ndarray) or image.shape != shape:
                return False
        return True

    async def _preprocess(
        self, images: Sequence[ImageInput], deadline: float
    ) -> Sequence[NDArray[np.uint8] | InvalidImageError]:
        """Return the model input of each image, or why there is none."""
        # Before the images are decoded: under overload the CPU is for those that will be answered.
        self._batcher.check_admission(len(images), deadline)
        prepared: list[NDArray[np.uint8] | InvalidImageError] = []
        began = time.perf_counter()
        try:
            results = await self._pool.map(self._prepare, images)
        finally:
            tracing.stage("preprocess", began, clock=time.perf_counter, images=len(images))
        for index, result in enumerate(results):
            if isinstance(result, InvalidImageError):
                self._metrics.decode_failed()
                error = InvalidImageError(f"images[{index}]: {result}")
                if len(images) == 1:
                    raise error from result
                prepared.append(error)
            elif isinstance(result, BaseException):
                raise result
            else:
                prepared.append(result)
        return prepared

    def _prepare(self, image: ImageInput) -> NDArray[np.uint8]:
        if isinstance(image, InvalidImageError):
            raise image
        return self._preprocessor.decode(image) if isinstance(image, bytes) else self._preprocessor.fit(image)

    def _ranking(self, row: Row, top_k: int) -> Ranking:
        outputs, at = row
        indexes, probabilities, finite = outputs.derive(top_k, lambda: self._rank(outputs.arrays[0], top_k))
        if not finite[at]:
            raise InferenceError(f"the model {self.spec.name} gave values that are not finite")
        return Ranking(indexes[at], probabilities[at])

    def _rank(
        self, scores: NDArray[np.float32], top_k: int
    ) -> tuple[list[list[int]], list[list[float]], list[bool]]:
        """Return, for each row, its top classes, their probabilities, and whether all values are finite."""
        finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(scores), axis=1)
        if not finite.all():
            scores = np.where(finite[:, np.newaxis], scores, np.float32(0))
        probabilities = _softmax(scores) if self.spec.output_is_logits else scores
        indexes = top_classes(probabilities, top_k)
        best = probabilities[np.arange(len(scores))[:, np.newaxis], indexes]
        return indexes.tolist(), best.tolist(), cast("list[bool]", finite.tolist())


# Below this many classes, sorting all of them is faster than looking for those that need sorting.
_FEW_CLASSES: Final = 64


def top_classes(values: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return, for each row of `values`, the indexes of its k largest.

    The largest first, equal ones by lower index. `values` is N × classes, the answer N × k.
    """
    if values.shape[1] <= _FEW_CLASSES:
        return np.argsort(-values, axis=1, kind="stable")[:, :k]
    best = np.empty((len(values), k), dtype=np.intp)
    for row, into in zip(values, best, strict=True):
        # Only the values from the k-th largest up need sorting; ties with it stay in, in index order.
        candidates = np.flatnonzero(row >= np.partition(row, -k)[-k])
        into[:] = candidates[np.argsort(-row[candidates], kind="stable")][:k]
    return best


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax of each row; all values are finite."""
    # The ufuncs' own methods: np.max and np.sum spend more time on their arguments than on ten classes.
    exponents: NDArray[np.float32] = np.exp(logits - np.maximum.reduce(logits, axis=1, keepdims=True))
    exponents /= np.add.reduce(exponents, axis=1, keepdims=True)
    return exponents

"""Classifier: images in, labelled predictions out. Plain values; no protobuf, no ONNX."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeGuard, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

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

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and how probable it is."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classified:
    """The answer to one request."""

    results: Sequence[Sequence[Prediction] | InvalidImageError]
    """For each image, in order: its predictions, most probable first, or why there are none."""
    batch_size: int
    queue_seconds: float
    preprocess_seconds: float
    compute_seconds: float
    postprocess_seconds: float


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
        try:
            classified = await self._classify(images, self._checked_top_k(top_k), deadline)
        except asyncio.CancelledError:
            # grpc cancels the handler when the deadline passes; its clock and ours differ by a few moments.
            late = time.monotonic() > deadline - DEADLINE_TOLERANCE
            self._metrics.request_ended("deadline" if late else "cancelled")
            raise
        except ServingError as error:
            self._metrics.request_ended(_OUTCOME.get(error.code, "error"))
            raise
        except Exception:
            self._metrics.request_ended("error")
            raise
        self._metrics.request_ended("ok")
        self._metrics.request_answered(
            seconds=time.perf_counter() - started,
            stages={
                "queue": classified.queue_seconds,
                "preprocess": classified.preprocess_seconds,
                "compute": classified.compute_seconds,
                "postprocess": classified.postprocess_seconds,
            },
        )
        return classified

    def _checked_top_k(self, top_k: int | None) -> int:
        classes = len(self.spec.labels)
        if top_k is None:
            return min(DEFAULT_TOP_K, classes)
        if not 1 <= top_k <= classes:
            raise InvalidRequestError(f"top_k: expected 1 to {classes}, the number of classes, got {top_k}")
        return top_k

    async def _classify(self, images: Sequence[ImageInput], top_k: int, deadline: float) -> Classified:
        started = time.perf_counter()
        inputs = images if self._need_nothing(images) else await self._preprocess(images, deadline)
        preprocess_seconds = time.perf_counter() - started
        samples = [image for image in inputs if not isinstance(image, InvalidImageError)]
        answer = (
            await self._batcher.infer(samples, deadline=deadline)
            if samples
            else Answer(rows=(), batch_size=0, queue_seconds=0.0, compute_seconds=0.0)
        )
        answered = time.perf_counter()
        rows = iter(answer.rows)
        results = [
            image if isinstance(image, InvalidImageError) else self._predictions(next(rows), top_k)
            for image in inputs
        ]
        return Classified(
            results=results,
            batch_size=answer.batch_size,
            queue_seconds=answer.queue_seconds,
            preprocess_seconds=preprocess_seconds,
            compute_seconds=answer.compute_seconds,
            postprocess_seconds=time.perf_counter() - answered,
        )

    def _need_nothing(self, images: Sequence[ImageInput]) -> TypeGuard[Sequence[NDArray[np.uint8]]]:
        shape = self._preprocessor.shape
        return all(isinstance(image, np.ndarray) and image.shape == shape for image in images)

    async def _preprocess(
        self, images: Sequence[ImageInput], deadline: float
    ) -> Sequence[NDArray[np.uint8] | InvalidImageError]:
        """Return the model input of each image, or why there is none."""
        # Before the images are decoded: under overload the CPU is for those that will be answered.
        self._batcher.check_admission(len(images), deadline)
        prepared: list[NDArray[np.uint8] | InvalidImageError] = []
        for index, result in enumerate(await self._pool.map(self._prepare, images)):
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

    def _predictions(self, row: NDArray[np.float32], top_k: int) -> list[Prediction]:
        probabilities = _softmax(row) if self.spec.output_is_logits else row
        # One NaN or infinity among the values makes the sum one.
        if not math.isfinite(probabilities.sum()):
            raise InferenceError(f"the model {self.spec.name} gave values that are not finite")
        labels = self.spec.labels
        return [
            Prediction(index, labels[index], float(probabilities[index]))
            for index in top_classes(probabilities, top_k)
        ]


# Below this many classes, Python's sort of a list is faster than three calls into numpy.
_FEW_CLASSES: Final = 32


def top_classes(values: NDArray[np.float32], k: int) -> list[int]:
    """Return the indexes of the k largest of `values`, largest first, equal ones by lower index."""
    if len(values) <= _FEW_CLASSES:
        as_list = values.tolist()
        # A reversed sort keeps the order of equals, too.
        return sorted(range(len(as_list)), key=as_list.__getitem__, reverse=True)[:k]
    # Only the values from the k-th largest up need sorting; ties with it stay in, in index order.
    candidates = np.flatnonzero(values >= np.partition(values, -k)[-k])
    best: list[int] = candidates[np.argsort(-values[candidates], kind="stable")][:k].tolist()
    return best


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents: NDArray[np.float32] = np.exp(logits - logits.max())
    exponents /= exponents.sum()
    return exponents

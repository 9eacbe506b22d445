"""Predictor: tensors in, tensors out, by the same batcher that answers images. Plain values; no protobuf."""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from vistazo_server.artifact.manifest import ScoresSpec
from vistazo_server.batching.batcher import DynamicBatcher
from vistazo_server.engine.graph import Sample, join_rows, split_samples
from vistazo_server.engine.outputs import Row
from vistazo_server.engine.tensors import BYTES, Array, Signature, TensorSpec
from vistazo_server.errors import InferenceError, InvalidImageError
from vistazo_server.inference.probabilities import both_classes
from vistazo_server.inference.ranking import classification
from vistazo_server.inference.side_thread import INLINE_SECONDS, SideThread, Steps, at_once
from vistazo_server.telemetry.metrics import ModelMetrics
from vistazo_server.telemetry.outcome import outcome_of

PrepareImages = Callable[[Sequence[bytes], float], Awaitable[Sequence[Sample | InvalidImageError]]]
"""Returns the sample of each encoded image, or why there is none; the number is the deadline, in
time.monotonic's seconds."""


# What it takes to put an answer together: for each byte that may have to be copied, for each value that is
# sorted, and for each class that is written as text.
COPY_SECONDS: Final = 0.5e-9
_SORT_SECONDS: Final = 100e-9
_CLASS_SECONDS: Final = 1e-6


class ModelInputs(NamedTuple):
    """What a request brought."""

    arrays: Sequence[Array]
    """One for each of the model's inputs, in its order, with the batch dimension; none with `images`."""
    images: Sequence[bytes]
    """Encoded files, given as BYTES instead of the tensor of an image model."""


class Undecoded(NamedTuple):
    """What a request brought, to be decoded once it is sure that it may be answered."""

    samples: int
    seconds: float
    """That decoding is predicted to take."""
    decode: Callable[[], Steps[ModelInputs]]
    """Raises InvalidRequestError."""


@dataclass(frozen=True, slots=True)
class OutputChoice:
    """One output of an answer."""

    index: int
    """In the model's outputs."""
    classes: int = 0
    """0: its values. Else Triton's classification: so many of the best classes."""


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """One tensor of an answer."""

    name: str
    datatype: str
    array: Array


class Predictor:
    """One model version, asked with tensors. `prepare_images`: it takes encoded images, too."""

    def __init__(
        self,
        signature: Signature,
        *,
        labels: Sequence[str],
        scores: ScoresSpec | None = None,
        output_labels: Mapping[str, Sequence[str]] = MappingProxyType({}),
        batcher: DynamicBatcher,
        metrics: ModelMetrics,
        side: SideThread,
        default_deadline: float,
        prepare_images: PrepareImages | None,
    ) -> None:
        self.signature = signature
        self.takes_images = prepare_images is not None
        self._labels = labels
        self._scores = scores
        self._output_labels = output_labels
        self._batcher = batcher
        self._metrics = metrics
        self._side = side
        self._default_deadline = default_deadline
        self._prepare_images = prepare_images

    async def predict(
        self, given: ModelInputs | Undecoded, *, outputs: Sequence[OutputChoice], deadline: float | None
    ) -> list[NamedTensor]:
        """Return the outputs asked for, of the tensors or images that were given.

        `deadline` is in time.monotonic's seconds; None: the model's default. Raises ServingError.
        """
        started = time.perf_counter()
        if deadline is None:
            deadline = time.monotonic() + self._default_deadline
        try:
            inputs = given if isinstance(given, ModelInputs) else await self._decoded(given, deadline)
            samples = (
                await self._samples_of(inputs.images, deadline)
                if inputs.images
                else split_samples(inputs.arrays, self.signature)
            )
            prepared = time.perf_counter()
            answer = await self._batcher.infer(samples, deadline=deadline)
            answered = time.perf_counter()
            tensors = await self._side.run(
                self._tensors(answer.rows, outputs),
                seconds=self._tensors_seconds(answer.rows, outputs),
                deadline=deadline,
            )
        except BaseException as error:
            self._metrics.request_ended(outcome_of(error, deadline))
            raise
        ended = time.perf_counter()
        self._metrics.request_answered(
            seconds=ended - started,
            queue=answer.queue_seconds,
            preprocess=prepared - started,
            compute=answer.compute_seconds,
            postprocess=ended - answered,
        )
        return tensors

    def refused(self, error: Exception) -> None:
        """Count a request that could not be decoded."""
        self._metrics.request_ended(outcome_of(error, math.inf))

    async def _decoded(self, given: Undecoded, deadline: float) -> ModelInputs:
        if given.seconds < INLINE_SECONDS:
            return at_once(given.decode())  # the batcher refuses it soon enough
        self._batcher.check_admission(given.samples, deadline, ready_in=self._side.ready_in(given.seconds))
        return await self._side.run(given.decode(), seconds=given.seconds, deadline=deadline)

    async def _samples_of(self, images: Sequence[bytes], deadline: float) -> list[Sample]:
        if self._prepare_images is None:
            raise TypeError("the model takes no images")
        name = self.signature.inputs[0].name
        samples = []
        for index, prepared in enumerate(await self._prepare_images(images, deadline)):
            if isinstance(prepared, InvalidImageError):
                raise InvalidImageError(f"input {name!r}, element {index}: {prepared}") from prepared
            samples.append(prepared)
        return samples

    def _tensors_seconds(self, rows: Sequence[Row], outputs: Sequence[OutputChoice]) -> float:
        """Return how long `_tensors` is predicted to take."""
        seconds = 0.0
        for choice in outputs:
            for row in rows:
                array = row.outputs.arrays[choice.index]
                size = array.size // len(array) if self.signature.is_batched else array.size
                seconds += (
                    size * _SORT_SECONDS + min(choice.classes, size) * _CLASS_SECONDS
                    if choice.classes
                    else size * array.itemsize * COPY_SECONDS
                )
        return seconds

    def _tensors(self, rows: Sequence[Row], outputs: Sequence[OutputChoice]) -> Steps[list[NamedTensor]]:
        """Return the outputs asked for from the rows of a request, as steps."""
        tensors = []
        for choice in outputs:
            spec = self.signature.outputs[choice.index]
            try:
                array = join_rows(rows, choice.index, self.signature)
            except ValueError:
                raise InferenceError(
                    f"the output {spec.name!r} has another shape for each sample; send the samples one by one"
                ) from None
            if choice.classes:
                scores = self._scores_of_classes(array, spec)
                array = yield from self._classification(scores, choice.classes, spec.name)
                tensors.append(NamedTensor(spec.name, BYTES, array))
            else:
                tensors.append(NamedTensor(spec.name, spec.datatype, array))
            yield
        return tensors

    def _scores_of_classes(self, array: Array, spec: TensorSpec) -> Array:
        """Return an output with a score for each label: a binary model's one score is of its second label."""
        scores = self._scores
        if scores is None or not scores.is_binary or spec.name != scores.tensor:
            return array
        rows = array.reshape(len(array), -1) if self.signature.is_batched else array.reshape(1, -1)
        if rows.shape[1] != 1:
            return array
        both = both_classes(rows, scores.kind)
        return both if self.signature.is_batched else both[0]

    def _classification(self, array: Array, classes: int, output: str) -> Steps[Array]:
        """Return the best classes of each sample as steps, an object array of shape [batch, classes]."""
        samples = array if self.signature.is_batched else array[np.newaxis]
        best = np.empty((len(samples), min(classes, samples[0].size)), dtype=object)
        labels = self._output_labels.get(output)
        if labels is None:
            labels = self._labels
        elif len(labels) != samples[0].size:
            labels = ()  # of other classes: no label is better than a wrong one
        for sample, into in zip(samples, best, strict=True):
            into[:] = yield from classification(sample.ravel(), classes, labels)
            yield
        return best if self.signature.is_batched else best[0]

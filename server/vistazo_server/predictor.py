"""Predictor: tensors in, tensors out, by the same batcher that answers images. Plain values; no protobuf."""

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vistazo_server.batcher import DynamicBatcher
from vistazo_server.errors import InferenceError, InvalidImageError
from vistazo_server.graph import Sample, join_rows, split_samples
from vistazo_server.metrics import ModelMetrics
from vistazo_server.outcome import outcome_of
from vistazo_server.outputs import Row
from vistazo_server.tensors import BYTES, Array, Signature, classification

PrepareImages = Callable[[Sequence[bytes], float], Awaitable[Sequence[Sample | InvalidImageError]]]
"""Returns the sample of each encoded image, or why there is none; the number is the deadline, in
time.monotonic's seconds."""


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
        batcher: DynamicBatcher,
        metrics: ModelMetrics,
        default_deadline: float,
        prepare_images: PrepareImages | None,
    ) -> None:
        self.signature = signature
        self.takes_images = prepare_images is not None
        self._labels = labels
        self._batcher = batcher
        self._metrics = metrics
        self._default_deadline = default_deadline
        self._prepare_images = prepare_images

    async def predict(
        self,
        inputs: Sequence[Array],
        *,
        images: Sequence[bytes],
        outputs: Sequence[OutputChoice],
        deadline: float | None,
    ) -> list[NamedTensor]:
        """Return the outputs asked for, of the tensors `inputs`, or of `images` where there are any.

        `inputs` has a tensor for each of the model's inputs, as its signature says. `deadline` is in
        time.monotonic's seconds; None: the model's default. Raises ServingError.
        """
        started = time.perf_counter()
        if deadline is None:
            deadline = time.monotonic() + self._default_deadline
        try:
            samples = (
                await self._samples_of(images, deadline) if images else split_samples(inputs, self.signature)
            )
            prepared = time.perf_counter()
            answer = await self._batcher.infer(samples, deadline=deadline)
            answered = time.perf_counter()
            tensors = [self._tensor(answer.rows, choice) for choice in outputs]
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

    def _tensor(self, rows: Sequence[Row], choice: OutputChoice) -> NamedTensor:
        spec = self.signature.outputs[choice.index]
        try:
            array = join_rows(rows, choice.index, self.signature)
        except ValueError:
            raise InferenceError(
                f"the output {spec.name!r} has another shape for each sample; send the samples one by one"
            ) from None
        if choice.classes:
            return NamedTensor(spec.name, BYTES, self._classification(array, choice.classes))
        return NamedTensor(spec.name, spec.datatype, array)

    def _classification(self, array: Array, classes: int) -> Array:
        """Return the best classes of each sample, an object array of shape [batch, classes]."""
        samples = array if self.signature.is_batched else array[np.newaxis]
        best = np.array(
            [classification(sample.ravel(), classes, self._labels) for sample in samples], dtype=object
        )
        return best if self.signature.is_batched else best[0]

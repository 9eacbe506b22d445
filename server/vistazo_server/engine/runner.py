"""Runners: samples in, rows out, on one ONNX Runtime session and on the thread that calls them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
import onnxruntime as ort

from vistazo_server.engine.graph import Sample, arrays_of
from vistazo_server.engine.outputs import BatchOutputs, Row
from vistazo_server.engine.tensors import BYTES, Array, Signature, describe
from vistazo_server.telemetry.statistics import RunStatistics

Feed = TypeVar("Feed")
"""What the session takes a batch in."""


def has_one_fixed_input(signature: Signature) -> bool:
    """Return whether batches of any size go into one array, so that buffers for them can be kept.

    Strings have no such array, and a batch fixed at more than 1 has to be filled up.
    """
    first, *others = signature.inputs
    return (
        not others
        and signature.is_batched
        and signature.fixed_batch < 2
        and first.is_fixed
        and first.datatype != BYTES
    )


class Runner(ABC, Generic[Feed]):
    """Runs batches of one graph, one at a time."""

    fails_in_parts: ClassVar[bool] = False
    """Whether `run` may return exceptions among the rows."""

    def __init__(self, session: ort.InferenceSession, signature: Signature) -> None:
        self._session = session
        self._signature = signature
        self._outputs = [spec.name for spec in signature.outputs]

    def run(
        self, samples: Sequence[Sample], statistics: RunStatistics | None = None
    ) -> Sequence[Row | Exception]:
        """Return one row for each of the samples, at least one, and count the runs.

        Raises what ONNX Runtime raises, and ValueError when an output has no row for each sample.
        """
        return self._run(samples, statistics)

    def _run(self, samples: Sequence[Sample], statistics: RunStatistics | None) -> Sequence[Row]:
        """Make one run."""
        began = time.perf_counter()
        feed = self._feed(samples)
        fed = time.perf_counter()
        outputs = self._compute(feed, None)
        ran = time.perf_counter()
        rows = self._rows(BatchOutputs(outputs), len(samples))
        if statistics is not None:
            statistics.ran(
                len(samples),
                input_seconds=fed - began,
                infer_seconds=ran - fed,
                output_seconds=time.perf_counter() - ran,
            )
        return rows

    def give_memory_back(self, sample: Sample) -> None:
        """Run one sample, and free what the arena of the CPU holds beyond what is in use.

        The arena keeps what the largest batch so far needed, and what batches of other sizes left between.
        Measured with ResNet18, AlexNet and VGG16: 1,015 MB before, 884 MB after.
        """
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._compute(self._feed([sample]), options)

    @abstractmethod
    def _feed(self, samples: Sequence[Sample]) -> Feed:
        """Put the batch together."""

    @abstractmethod
    def _compute(self, feed: Feed, options: ort.RunOptions | None) -> tuple[Array, ...]:
        """Run the session, and return its outputs on the host in the signature's order."""

    def _rows(self, outputs: BatchOutputs, count: int) -> list[Row]:
        """Return the rows of `count` samples."""
        if not self._signature.is_batched:
            return [Row(outputs, 0)]
        expected = self._rows_expected(count)
        for name, array in zip(self._outputs, outputs.arrays, strict=True):
            if array.ndim == 0 or len(array) != expected:
                shape = describe(array.shape)
                raise ValueError(f"the output {name!r} of a batch of {expected} has the shape {shape}")
        return [Row(outputs, index) for index in range(count)]

    def _rows_expected(self, count: int) -> int:
        return count


class StackingRunner(Runner[Array]):
    """For one input of a fixed shape: batches are put together in a buffer that is kept."""

    def __init__(self, session: ort.InferenceSession, signature: Signature, *, max_batch_size: int) -> None:
        super().__init__(session, signature)
        (spec,) = signature.inputs
        self._input = spec.name
        # No allocation on the hot path.
        self._buffer = np.zeros((max_batch_size, *spec.dims), dtype=spec.dtype)

    def _feed(self, samples: Sequence[Sample]) -> Array:
        batch = self._buffer[: len(samples)]
        for into, sample in enumerate(samples):  # np.stack looks at each of them first
            batch[into] = sample
        return batch

    def _compute(self, feed: Array, options: ort.RunOptions | None) -> tuple[Array, ...]:
        return tuple(self._session.run(self._outputs, {self._input: feed}, options))


class GraphRunner(Runner[dict[str, Array]]):
    """For any graph. Samples of different shapes never share a run."""

    fails_in_parts = True

    def run(
        self, samples: Sequence[Sample], statistics: RunStatistics | None = None
    ) -> Sequence[Row | Exception]:
        """Return the rows, as Runner says; one run for each group of samples.

        Where the run of one group of several fails, what it raised stands for the row of each of its samples:
        a shape that the graph cannot run does not cost the other groups theirs.
        """
        groups = self._groups(samples)
        if len(groups) == 1:
            return self._run(samples, statistics)
        rows: dict[int, Row | Exception] = {}
        for places in groups:
            grouped: Sequence[Row | Exception]
            try:
                grouped = self._run([samples[at] for at in places], statistics)
            except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no base class
                grouped = [error] * len(places)
            rows.update(zip(places, grouped, strict=True))
        return [rows[at] for at in range(len(samples))]

    def _groups(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Return which samples run together, by their places: those of one shape, as many as fit."""
        if not self._signature.is_batched:
            return [[at] for at in range(len(samples))]
        by_shape: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for at, sample in enumerate(samples):
            by_shape.setdefault(tuple(array.shape for array in arrays_of(sample)), []).append(at)
        size = self._signature.fixed_batch or len(samples)
        return [group[at : at + size] for group in by_shape.values() for at in range(0, len(group), size)]

    def _feed(self, samples: Sequence[Sample]) -> dict[str, Array]:
        """Return the graph's inputs for samples of one shape.

        A fixed batch is filled up with its first sample: that one is known to be good.
        """
        inputs = self._signature.inputs
        if not self._signature.is_batched:
            return {spec.name: array for spec, array in zip(inputs, arrays_of(samples[0]), strict=True)}
        missing = max(self._signature.fixed_batch - len(samples), 0)
        filled = [*samples, *([samples[0]] * missing)]
        columns = zip(*map(arrays_of, filled), strict=True)
        return {spec.name: np.stack(column) for spec, column in zip(inputs, columns, strict=True)}

    def _compute(self, feed: dict[str, Array], options: ort.RunOptions | None) -> tuple[Array, ...]:
        # Scalars come back as NumPy's own scalars.
        return tuple(np.asarray(output) for output in self._session.run(self._outputs, feed, options))

    def _rows_expected(self, count: int) -> int:
        return self._signature.fixed_batch or count

"""Runners: samples in, rows out, on one ONNX Runtime session and on the thread that calls them."""

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnxruntime as ort

from vistazo_server.bound_runner import BoundRunner
from vistazo_server.graph import Sample, arrays_of
from vistazo_server.outputs import BatchOutputs, Row
from vistazo_server.statistics import RunStatistics
from vistazo_server.tensors import BYTES, Array, Signature, describe


class Runner(Protocol):
    """Runs batches of one graph."""

    def run(self, samples: Sequence[Sample], statistics: RunStatistics | None = None) -> Sequence[Row]:
        """Return one row for each of the samples, at least one, and count the runs.

        Raises what ONNX Runtime raises, and ValueError when an output has no row for each sample.
        """


def runner_for(
    session: ort.InferenceSession, signature: Signature, *, max_batch_size: int, device: str
) -> Runner:
    """Return the fastest runner that the signature allows on `device`, cpu or cuda."""
    first, *others = signature.inputs
    stacks = signature.is_batched and first.is_fixed and first.datatype != BYTES
    # A batch fixed at more than 1 has to be filled up.
    if stacks and signature.fixed_batch < 2 and not others:
        if device != "cpu":
            return BoundRunner(session, signature, max_batch_size=max_batch_size, device=device)
        return StackingRunner(session, signature, max_batch_size=max_batch_size)
    return GraphRunner(session, signature)


class StackingRunner:
    """For one input of a fixed shape: batches are put together in buffers that are kept."""

    def __init__(self, session: ort.InferenceSession, signature: Signature, *, max_batch_size: int) -> None:
        (self._input,) = signature.inputs
        self._session = session
        self._outputs = [spec.name for spec in signature.outputs]
        self._shape = (max_batch_size, *self._input.dims)
        # No allocation on the hot path. As many as there are runs at a time; a list's ends are thread-safe.
        self._buffers = [np.zeros(self._shape, dtype=self._input.dtype)]

    def run(self, samples: Sequence[Sample], statistics: RunStatistics | None = None) -> Sequence[Row]:
        """Return the rows, as Runner says."""
        began = time.perf_counter()
        buffer = self._take_buffer()
        batch = buffer[: len(samples)]
        for into, sample in enumerate(samples):  # np.stack looks at each of them first
            batch[into] = sample
        stacked = time.perf_counter()
        outputs = BatchOutputs(tuple(self._session.run(self._outputs, {self._input.name: batch})))
        ran = time.perf_counter()
        self._buffers.append(buffer)
        for name, array in zip(self._outputs, outputs.arrays, strict=True):
            if len(array) != len(samples):
                raise ValueError(_wrong_rows(name, array, len(samples)))
        rows = [Row(outputs, index) for index in range(len(samples))]
        if statistics is not None:
            statistics.ran(
                len(samples),
                input_seconds=stacked - began,
                infer_seconds=ran - stacked,
                output_seconds=time.perf_counter() - ran,
            )
        return rows

    def _take_buffer(self) -> Array:
        try:
            return self._buffers.pop()
        except IndexError:
            return np.zeros(self._shape, dtype=self._input.dtype)


class GraphRunner:
    """For any graph. Samples of different shapes never share a run."""

    def __init__(self, session: ort.InferenceSession, signature: Signature) -> None:
        self._session = session
        self._signature = signature
        self._outputs = [spec.name for spec in signature.outputs]

    def run(self, samples: Sequence[Sample], statistics: RunStatistics | None = None) -> Sequence[Row]:
        """Return the rows, as Runner says."""
        rows: dict[int, Row] = {}
        for places in self._groups(samples):
            began = time.perf_counter()
            feeds = self._feeds([samples[at] for at in places])
            stacked = time.perf_counter()
            # Scalars come back as NumPy's own scalars.
            outputs = tuple(np.asarray(output) for output in self._session.run(self._outputs, feeds))
            ran = time.perf_counter()
            rows.update(zip(places, self._rows(outputs, len(places)), strict=True))
            if statistics is not None:
                statistics.ran(
                    len(places),
                    input_seconds=stacked - began,
                    infer_seconds=ran - stacked,
                    output_seconds=time.perf_counter() - ran,
                )
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

    def _feeds(self, samples: Sequence[Sample]) -> dict[str, Array]:
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

    def _rows(self, outputs: tuple[Array, ...], count: int) -> list[Row]:
        if not self._signature.is_batched:
            return [Row(BatchOutputs(outputs), 0)]
        expected = self._signature.fixed_batch or count
        for name, output in zip(self._outputs, outputs, strict=True):
            if output.ndim == 0 or len(output) != expected:
                raise ValueError(_wrong_rows(name, output, expected))
        shared = BatchOutputs(outputs)
        return [Row(shared, index) for index in range(count)]


def _wrong_rows(name: str, output: Array, expected: int) -> str:
    return f"the output {name!r} of a batch of {expected} has the shape {describe(output.shape)}"

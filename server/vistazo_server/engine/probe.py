"""Finding out by trial what a graph does with batches, where no manifest says so."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
import structlog

from vistazo_server.engine.graph import Sample, arrays_of, without_batch, zeros
from vistazo_server.engine.runner import GraphRunner
from vistazo_server.engine.tensors import Array, Signature
from vistazo_server.errors import ModelLoadError, one_line

log = structlog.get_logger(__name__)

# What the batch-mates of a trial are full of: a scale or a mean over the batch follows the largest of them.
_EXTREMES: Final = (1e4, -1e4, 0.0)

# Relative: runs of one size on the same sample differ by no more than rounding.
_SAME: Final = 1e-5


def settle(
    session: ort.InferenceSession, signature: Signature, path: Path
) -> tuple[Signature, Sample | None]:
    """Return the signature by which the graph runs, and a sample that it takes.

    Many exporters leave the batch dimension free and write a batch of 1 into a reshape. Such a graph is
    served one by one; one whose outputs do not count samples at all, without a batch dimension. The sample
    is None where sizes are free and none of the guesses runs. Raises ModelLoadError where none has to be
    guessed and the graph fails.
    """
    failure: Exception | None = None
    for candidate, count in _candidates(signature):
        runner = GraphRunner(session, candidate)
        for sample in zeros(candidate):
            try:
                runner.run([sample] * count)
            except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no base class
                failure = failure or error
                continue
            if candidate.fixed_batch == 1 and not signature.fixed_batch:
                reason = f"it runs no batch of 2: {one_line(failure, characters=300)}" if failure else ""
                log.warning("samples_run_one_by_one", path=str(path), reason=reason)
            return candidate, sample
    if failure is not None and all(spec.is_fixed for spec in signature.inputs):
        raise ModelLoadError(f"{path} fails: {one_line(failure, characters=300)}") from failure
    log.warning("warm_up_skipped", path=str(path), reason="no size was found that it runs at")
    return signature, None


def settle_images(session: ort.InferenceSession, signature: Signature, path: Path) -> Signature:
    """Return the signature by which the graph of an image model runs: one by one where it takes no batch.

    An output may say a batch of 1 where the input's is free; which of both is true, a run shows.
    """
    if signature.fixed_batch:
        return signature
    (sample,) = zeros(signature)
    try:
        GraphRunner(session, signature).run([sample] * 2)
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no base class
        reason = f"it runs no batch of 2: {one_line(error, characters=300)}"
        log.warning("samples_run_one_by_one", path=str(path), reason=reason)
        return replace(signature, fixed_batch=1)
    return signature


def feels_batch_mates(session: ort.InferenceSession, signature: Signature, zero: Sample) -> bool:
    """Return whether a sample's answer depends on who else is in its batch, by trial with extreme mates.

    Such are graphs that quantise dynamically or normalise over the batch. Only floats are varied: of other
    numbers nobody knows which the graph takes.
    """
    random = np.random.default_rng(0)
    sample = _like(zero, lambda array: random.random(array.shape))
    runner = GraphRunner(session, signature)

    def first(mate: Sample) -> list[Array]:
        row = runner.run([sample, mate])[0]
        if isinstance(row, Exception):
            raise row
        return [array[row.at] for array in row.outputs.arrays]

    try:
        alone, again = first(sample), first(sample)
        noise = max(_difference(*pair) for pair in zip(alone, again, strict=True))
        for extreme in _EXTREMES:
            mate = _like(zero, lambda array, value=extreme: np.full(array.shape, value))  # type: ignore[misc]
            found = max(_difference(*pair) for pair in zip(alone, first(mate), strict=True))
            if found > max(_SAME, 4 * noise):
                return True
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no base class
        log.warning("batch_mates_not_tried", reason=one_line(error, characters=300))
    return False


def _like(sample: Sample, values: Callable[[Array], Array]) -> Sample:
    """Return a sample of the same shapes, its floats replaced."""
    with np.errstate(over="ignore"):
        arrays = [
            values(array).astype(array.dtype) if array.dtype.kind == "f" else array
            for array in arrays_of(sample)
        ]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _difference(expected: Array, found: Array) -> float:
    """Return the largest difference relative to the largest value; of other than floats, 0 or 1."""
    if expected.shape != found.shape:
        return 1.0
    if expected.dtype.kind != "f" or np.array_equal(expected, found, equal_nan=True):
        return float(not np.array_equal(expected, found, equal_nan=expected.dtype.kind == "f"))
    largest = float(np.nanmax(np.abs(expected), initial=0.0)) or 1.0
    difference = float(np.max(np.abs(expected.astype(np.float64) - found.astype(np.float64)))) / largest
    return difference if difference == difference else 1.0  # noqa: PLR0124  NaN on one side only


def _candidates(signature: Signature) -> Iterator[tuple[Signature, int]]:
    """Yield what the signature may be, and how many samples show whether it is."""
    if not signature.is_batched or signature.fixed_batch:
        yield signature, 1
        return
    yield signature, 2
    yield replace(signature, fixed_batch=1), 1
    yield without_batch(signature), 1

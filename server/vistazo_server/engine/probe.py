"""Finding out by trial what a graph does with batches, where no manifest says so."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import onnxruntime as ort
import structlog

from vistazo_onnx.batch_mates import mixing_operator
from vistazo_onnx.trial import influence
from vistazo_server.engine.graph import Sample, arrays_of, without_batch, zeros
from vistazo_server.engine.runner import GraphRunner
from vistazo_server.engine.tensors import Array, Signature
from vistazo_server.errors import ModelLoadError, one_line

log = structlog.get_logger(__name__)

# What a trial may take at the load of a model, beyond the few runs without which nothing is known.
_TRIAL_SECONDS: Final = 1.0


class Settled(NamedTuple):
    """How a graph runs, as a trial has shown."""

    signature: Signature
    sample: Sample | None
    """One that it takes; None where sizes are free and none of the guesses runs."""
    one_by_one: str = ""
    """Why it runs no batch though its signature said so; empty: it does, or never said so."""


def settle(session: ort.InferenceSession, signature: Signature, path: Path) -> Settled:
    """Return the signature by which the graph runs, and a sample that it takes.

    Many exporters leave the batch dimension free and write a batch of 1 into a reshape. Such a graph is
    served one by one; one whose outputs do not count samples at all, without a batch dimension. Raises
    ModelLoadError where no size has to be guessed and the graph fails.
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
            found_out = candidate.fixed_batch == 1 and not signature.fixed_batch
            return Settled(candidate, sample, _no_batch(failure) if found_out and failure else "")
    if failure is not None and all(spec.is_fixed for spec in signature.inputs):
        raise ModelLoadError(f"{path} fails: {one_line(failure, characters=300)}") from failure
    log.warning("warm_up_skipped", path=str(path), reason="no size was found that it runs at")
    return Settled(signature, None)


def settle_images(session: ort.InferenceSession, signature: Signature) -> Settled:
    """Return the signature by which the graph of an image model runs: one by one where it takes no batch.

    An output may say a batch of 1 where the input's is free; which of both is true, a run shows.
    """
    (sample,) = zeros(signature)
    if signature.fixed_batch:
        return Settled(signature, sample)
    try:
        GraphRunner(session, signature).run([sample] * 2)
    except Exception as error:  # noqa: BLE001  ONNX Runtime's exceptions share no base class
        return Settled(replace(signature, fixed_batch=1), sample, _no_batch(error))
    return Settled(signature, sample)


def _no_batch(failure: Exception) -> str:
    return f"it runs no batch of 2: {one_line(failure, characters=300)}"


def batch_mates(
    session: ort.InferenceSession, signature: Signature, sample: Sample | None, path: Path, *, largest: int
) -> str:
    """Return why samples must not share a batch; empty where nothing speaks against it.

    By what the signature and the operators say and, where batches of up to `largest` are to be run, by trial.
    That takes a second at most beyond five runs of one or two samples.
    """
    if not signature.is_batched:
        return "the graph has no batch dimension"
    if signature.fixed_batch == 1:
        return "the graph takes batches of 1"
    if reason := mixing_operator(path):
        return reason
    if largest == 1:
        return ""
    if sample is None:
        return "nobody knows at which sizes it runs, so that no batch was tried"
    names = [spec.name for spec in signature.outputs]
    takes = [spec.name for spec in signature.inputs]

    def run(columns: Sequence[Array]) -> Sequence[Array]:
        given: Sequence[Array] = session.run(names, dict(zip(takes, columns, strict=True)))
        return given

    fixed = signature.fixed_batch
    return influence(
        run,
        arrays_of(sample),
        (fixed,) if fixed else (2, min(3, largest), largest),
        seconds=_TRIAL_SECONDS,
        alone=not fixed,
    )


def _candidates(signature: Signature) -> Iterator[tuple[Signature, int]]:
    """Yield what the signature may be, and how many samples show whether it is."""
    if not signature.is_batched or signature.fixed_batch:
        yield signature, 1
        return
    yield signature, 2
    yield replace(signature, fixed_batch=1), 1
    yield without_batch(signature), 1

"""Finding out by trial what a graph does with batches, where no manifest says so."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
import structlog

from vistazo_server.engine.graph import Sample, without_batch, zeros
from vistazo_server.engine.runner import GraphRunner
from vistazo_server.engine.tensors import Signature
from vistazo_server.errors import ModelLoadError, one_line

log = structlog.get_logger(__name__)


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


def _candidates(signature: Signature) -> Iterator[tuple[Signature, int]]:
    """Yield what the signature may be, and how many samples show whether it is."""
    if not signature.is_batched or signature.fixed_batch:
        yield signature, 1
        return
    yield signature, 2
    yield replace(signature, fixed_batch=1), 1
    yield without_batch(signature), 1
